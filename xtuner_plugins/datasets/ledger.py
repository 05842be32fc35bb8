"""Every sample is accounted for: trained on, or left out with a reason in the ledger. None is ever replaced.

`work_dir/ledger.jsonl` gets a line for each sample that is left out, when it is read or when the plan is made,

    {"epoch": 0, "dataset": "vqa", "index": 17, "reason": "image_missing", "message": "vqa.jsonl:18: ..."}

and a line of sums for each epoch: {"epoch": 0, "trained": 9996, "dropped": 4, "total": 10000}.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from ..files import write_whole
from .left_out import ON_PURPOSE

MAX_BAD_SAMPLES = 100  # of an epoch; more stop the run


class TooManyBadSamples(ValueError):
    """More samples of an epoch than `MAX_BAD_SAMPLES` can't be used."""


class Ledger:
    """The file of samples that were left out, and the sums of each epoch; without a path it only counts.

    Each line is appended by one write, so several ranks may share a file.
    """

    def __init__(self, path: str | os.PathLike | None):
        self.path = None if path is None else Path(path)
        self.trained: Counter[int] = Counter()  # by epoch
        self.dropped: Counter[int] = Counter()
        self._bad: Counter[int] = Counter()  # by epoch, of all processes
        self._counted_to = 0  # bytes of the file that `_bad` includes

    def account(self, epoch: int, trained: int, dropped: Iterable[dict]) -> None:
        """Enter a batch.

        Args:
            trained: number of its samples that are trained on.
            dropped: the others, each with dataset, index, dropped (the reason) and message.

        Raises:
            TooManyBadSamples: more than `MAX_BAD_SAMPLES` in the epoch, over all processes that write to the file
                (without a file, in this process). Samples left out on purpose (`ON_PURPOSE`) don't count.
        """
        self.trained[epoch] += trained
        for sample in dropped:
            self.dropped[epoch] += 1
            place = {"epoch": epoch, "dataset": sample.get("dataset", ""), "index": sample.get("index", -1)}
            self._write(place | {"reason": sample["dropped"], "message": sample["message"]})
            if sample["dropped"] not in ON_PURPOSE and self._count_bad(epoch) > MAX_BAD_SAMPLES:
                said = f"{self._bad[epoch]} samples can't be used, a run stops beyond {MAX_BAD_SAMPLES} per epoch"
                remedy = "find them all with tools/check_data.py, and mend or reject them"
                raise TooManyBadSamples(f"{said}; the last: {sample['message']}; {remedy}")

    def close_epoch(self, epoch: int, total: int) -> dict:
        """Enter an epoch's sums."""
        sums = {"epoch": epoch, "trained": self.trained[epoch], "dropped": self.dropped[epoch], "total": total}
        self._write(sums)
        return sums

    def _count_bad(self, epoch: int) -> int:
        """Unusable samples of an epoch in the file, the newest of this process included."""
        if self.path is None:
            self._bad[epoch] += 1
            return self._bad[epoch]
        with open(self.path, "rb") as file:
            file.seek(self._counted_to)
            for line in file:
                if not line.endswith(b"\n"):  # another process is writing it
                    break
                self._counted_to += len(line)
                entry = json.loads(line)
                self._bad[entry["epoch"]] += "reason" in entry and entry["reason"] not in ON_PURPOSE
        return self._bad[epoch]

    def begin(self, epoch: int, taken: Sequence[int]) -> None:
        """Begin or resume a run: entries before its position are kept, later ones removed, since they will come again.

        Args:
            epoch: in which the run begins.
            taken: samples of that epoch that were taken before; empty at its start.
        """
        if self.path is None or not self.path.exists():
            self.trained[epoch] = len(taken)
            return
        if epoch == 0 and not len(taken):  # of another run in the same folder
            os.replace(self.path, self.path.with_name("ledger.previous.jsonl"))
            return
        before, lines = set(np.asarray(taken).tolist()), []
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:  # the end of the file, or a line that a crash cut off
                continue
            is_met = entry["epoch"] == epoch and entry.get("index") in before
            self.dropped[epoch] += is_met
            lines += [f"{line}\n"] * (is_met or entry["epoch"] < epoch)
        self.trained[epoch] = len(taken) - self.dropped[epoch]
        write_whole(self.path, lambda target: target.write_text("".join(lines), "utf-8"))

    def take_from(self, batch: dict) -> None:
        """Enter and log what `dropped` of a batch names, and remove it, where no `LedgerHook` has done so before.

        Raises:
            TooManyBadSamples: more than `MAX_BAD_SAMPLES`, here of the whole run.
        """
        for sample in batch.pop("dropped", ()):
            self.account(0, 0, [sample])
            told = f"sample left out ({self.dropped[0]} so far), {sample['dropped']}: {sample['message']}"
            print_log(f"{told}; LedgerHook writes all to work_dir/ledger.jsonl", "current", logging.WARNING)

    def _write(self, entry: dict) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
