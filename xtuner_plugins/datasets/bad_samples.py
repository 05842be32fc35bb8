"""Every sample is accounted for: trained on, or left out with a reason in the ledger. None is ever swapped.

`work_dir/ledger.jsonl` gets a line for each sample that is left out, when it is met or when the plan is made,

    {"epoch": 0, "dataset": "vqa", "index": 17, "reason": "image_missing", "message": "vqa.jsonl:18: ..."}

and for each epoch a line of sums: {"epoch": 0, "trained": 9996, "dropped": 4, "total": 10000}.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from .errors import DataError, SettingError

POLICIES = ("raise", "skip")
FILLER = "(filler: no sample is left for this rank)"


class TooManyBadSamples(RuntimeError):
    """More samples were left out than the setting allows."""


def check_policy(on_bad_sample: str, max_bad_samples: int) -> tuple[str, int]:
    """The two settings themselves.

    Raises:
        SettingError: an unknown policy, or a ceiling that is none.
    """
    if on_bad_sample not in POLICIES:
        raise SettingError(
            "on_bad_sample", f"on_bad_sample={on_bad_sample!r} is unknown", f"it is one of {', '.join(POLICIES)}"
        )
    if isinstance(max_bad_samples, bool) or not isinstance(max_bad_samples, int) or max_bad_samples < 0:
        raise SettingError(
            "max_bad_samples", f"max_bad_samples={max_bad_samples!r} is no ceiling", "give a whole number, 0 or more"
        )
    return on_bad_sample, max_bad_samples


def dropped_sample(error: DataError, source: str, tile_size: int) -> dict:
    """What stands in a batch's list for a sample that is left out; `collate` takes it out."""
    return {
        "dropped": error.reason,
        "message": str(error),
        "source": source,
        "tiles": torch.empty(0, 3, tile_size, tile_size, dtype=torch.uint8),
    }


def filler_sample(tile_size: int) -> dict:
    """What a rank gets in an epoch's last step when no sample is left for it: nothing is learned from it."""
    return {
        "input_ids": torch.zeros(1, dtype=torch.int64),
        "labels": torch.full((1,), -100),
        "num_tiles": 0,
        "tiles": torch.empty(0, 3, tile_size, tile_size, dtype=torch.uint8),
        "source": FILLER,
    }


def read_reject_list(path: str | os.PathLike | None, sources: Sequence) -> list[frozenset[int]]:
    """Numbers of the records to leave out, for each file of a mixture.

    Args:
        path: what `tools/check_data.py --reject-list` wrote; None rejects nothing.
        sources: the mixture's files (`mixture.Source`).

    Raises:
        SettingError: the list is missing or isn't one.
    """
    rows: dict[str, set[int]] = {}
    if path is not None:
        try:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                rows.setdefault(os.path.realpath(entry["file"]), set()).add(int(entry["row"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingError(
                "reject_list",
                f"reject list {os.fspath(path)!r} can't be read ({error})",
                "write it with tools/check_data.py --reject-list",
            ) from None
    return [frozenset(rows.get(os.path.realpath(source.index.path), ())) for source in sources]


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
            self._write(
                {
                    "epoch": epoch,
                    "dataset": sample.get("dataset", ""),
                    "index": sample.get("index", -1),
                    "reason": sample["dropped"],
                    "message": sample["message"],
                }
            )
            self._bad += sample["dropped"] != "too_long"
            if self._bad > self.max_bad_samples:
                raise TooManyBadSamples(
                    f"{self._bad} samples can't be used, max_bad_samples is {self.max_bad_samples}; the last: "
                    f"{sample['message']}; run tools/check_data.py, or raise the ceiling"
                )

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


@HOOKS.register_module()
class LedgerHook(Hook):
    """Keeps the ledger of a run: takes the samples that were left out from each batch, before the model sees it.

    Args:
        max_bad_samples: more unusable samples than this (of this process) stop the run.
    """

    priority = "VERY_HIGH"

    def __init__(self, max_bad_samples: int = 100):
        self.max_bad_samples = max_bad_samples
        self.ledger: Ledger | None = None
        self._epoch = 0

    def before_train(self, runner) -> None:
        self.ledger = Ledger(Path(runner.work_dir) / "ledger.jsonl", self.max_bad_samples)
        self._epoch = self._epoch_of(runner)
        if get_rank() == 0:
            self._enter_plan(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        epoch = self._epoch_of(runner)
        if epoch != self._epoch:
            self._close(runner)
            self._epoch = epoch
        trained = sum(source != FILLER for source in data_batch["sources"])
        self.ledger.account(epoch, trained, data_batch.pop("dropped", ()))

    def after_train(self, runner) -> None:
        self._close(runner)

    def _epoch_of(self, runner) -> int:
        return runner.iter // max(len(runner.train_dataloader), 1)

    def _enter_plan(self, runner) -> None:
        """What the plan leaves out is known before the first step."""
        sampler = getattr(runner.train_dataloader.batch_sampler, "sampler", None) or runner.train_dataloader.sampler
        left_out = getattr(sampler, "left_out", lambda: [])()
        self.ledger.account(self._epoch, 0, left_out)

    def _close(self, runner) -> None:
        counts = torch.tensor([self.ledger.trained[self._epoch], self.ledger.dropped[self._epoch]])
        all_reduce(counts)
        if get_rank() == 0:
            self.ledger.trained[self._epoch], self.ledger.dropped[self._epoch] = counts.tolist()
            self.ledger.close_epoch(self._epoch, len(runner.train_dataloader.dataset))
