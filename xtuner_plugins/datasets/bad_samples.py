"""Every sample is accounted for: trained on, or left out with a reason in the ledger. None is ever swapped.

`work_dir/ledger.jsonl` gets a line for each sample that is left out, when it is met or when the plan is made,

    {"epoch": 0, "dataset": "vqa", "index": 17, "reason": "image_missing", "message": "vqa.jsonl:18: ..."}

and for each epoch a line of sums: {"epoch": 0, "trained": 9996, "dropped": 4, "total": 10000}.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from .errors import DataError, SettingError

POLICIES = ("raise", "skip")


class TooManyBadSamples(RuntimeError):
    """More samples were left out than the setting allows."""


def check_policy(on_bad_sample: str, max_bad_samples: int) -> tuple[str, int]:
    """The two settings themselves.

    Raises:
        SettingError: an unknown policy, or a ceiling that is none.
    """
    if on_bad_sample not in POLICIES:
        raise SettingError("on_bad_sample", f"on_bad_sample={on_bad_sample!r} is unknown",
                           f"it is one of {', '.join(POLICIES)}")
    if isinstance(max_bad_samples, bool) or not isinstance(max_bad_samples, int) or max_bad_samples < 0:
        raise SettingError("max_bad_samples", f"max_bad_samples={max_bad_samples!r} is no ceiling",
                           "give a whole number, 0 or more")
    return on_bad_sample, max_bad_samples


def dropped_sample(error: DataError, source: str, tile_size: int) -> dict:
    """What stands in a batch's list for a sample that is left out; `collate` takes it out."""
    return {"dropped": error.reason, "message": str(error), "source": source,
            "tiles": torch.empty(0, 3, tile_size, tile_size, dtype=torch.uint8)}


class Ledger:
    """The file of samples that were left out, and the sums of an epoch.

    Lines are appended whole, so several ranks may write to one file.

    Args:
        path: the file; None only counts.
        max_bad_samples: more dropped samples than this (of one epoch, in this process) stop the run; samples that
            are too long don't count.
    """

    def __init__(self, path: str | os.PathLike | None, max_bad_samples: int = 100):
        self.path = None if path is None else Path(path)
        self.max_bad_samples = max_bad_samples
        self.trained: Counter[int] = Counter()  # by epoch
        self.dropped: Counter[int] = Counter()
        self._bad = 0

    def account(self, epoch: int, trained: int, dropped: Iterable[dict]) -> None:
        """Enter a batch.

        Args:
            trained: number of its samples that are trained on.
            dropped: the others, each with dataset, index, dropped (the reason) and message.

        Raises:
            TooManyBadSamples: the ceiling is passed.
        """
        self.trained[epoch] += trained
        for sample in dropped:
            self.dropped[epoch] += 1
            self._write({"epoch": epoch, "dataset": sample.get("dataset", ""), "index": sample.get("index", -1),
                         "reason": sample["dropped"], "message": sample["message"]})
            self._bad += sample["dropped"] != "too_long"
            if self._bad > self.max_bad_samples:
                raise TooManyBadSamples(
                    f"{self._bad} samples can't be used, max_bad_samples is {self.max_bad_samples}; the last: "
                    f"{sample['message']}; run tools/check_data.py, or raise the ceiling")

    def close_epoch(self, epoch: int, total: int) -> dict:
        """Enter an epoch's sums."""
        sums = {"epoch": epoch, "trained": self.trained[epoch], "dropped": self.dropped[epoch], "total": total}
        self._write(sums)
        return sums

    def _write(self, entry: dict) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
