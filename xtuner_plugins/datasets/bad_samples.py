"""Every sample is accounted for: trained on, or left out with a reason in the ledger. None is ever swapped.

`work_dir/ledger.jsonl` gets a line for each sample that is left out, when it is met or when the plan is made,

    {"epoch": 0, "dataset": "vqa", "index": 17, "reason": "image_missing", "message": "vqa.jsonl:18: ..."}

and for each epoch a line of sums: {"epoch": 0, "trained": 9996, "dropped": 4, "total": 10000}.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from xtuner_plugins.hub.constants import IGNORE_INDEX

from .cache import write_whole
from .errors import DataError, SettingError

POLICIES = ("raise", "skip")
ON_PURPOSE = ("too_long", "rejected", "empty_answer")  # left out whatever the policy, and not counted as bad
FILLER = "(filler: no sample is left for this rank)"
FILLER_INDEX = -(1 << 31)  # what a sampler gives a rank for which no sample is left; no dataset has such an index


class TooManyBadSamples(ValueError):
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


def dropped_sample(error: DataError, source: str, tile_size: int, max_bad_samples: int = 100) -> dict:
    """What stands in a batch's list for a sample that is left out; `collate` moves it into the batch's `dropped`."""
    return {
        "dropped": error.reason,
        "message": str(error),
        "source": source,
        "max_bad_samples": max_bad_samples,
        "tiles": torch.empty(0, 3, tile_size, tile_size, dtype=torch.uint8),
    }


def filler_sample(tile_size: int) -> dict:
    """What a rank gets in an epoch's last step when no sample is left for it: nothing is learned from it."""
    return {
        "input_ids": torch.zeros(1, dtype=torch.int64),
        "labels": torch.full((1,), IGNORE_INDEX),
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
        max_bad_samples: more dropped samples than this stop the run. They are counted over an epoch and over all
            processes that write to `path` (without a path, in this process); samples that are too long, or on the
            reject list, don't count: they are left out on purpose.
    """

    def __init__(self, path: str | os.PathLike | None, max_bad_samples: int = 100):
        self.path = None if path is None else Path(path)
        self.max_bad_samples = max_bad_samples
        self.trained: Counter[int] = Counter()  # by epoch
        self.dropped: Counter[int] = Counter()
        self._bad: Counter[int] = Counter()  # by epoch, of all processes
        self._counted_to = 0  # bytes of the file that `_bad` knows

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
            if sample["dropped"] not in ON_PURPOSE and self._count_bad(epoch) > self.max_bad_samples:
                raise TooManyBadSamples(
                    f"{self._bad[epoch]} samples can't be used, max_bad_samples is {self.max_bad_samples}; the last: "
                    f"{sample['message']}; run tools/check_data.py, or raise the ceiling"
                )

    def close_epoch(self, epoch: int, total: int) -> dict:
        """Enter an epoch's sums."""
        sums = {"epoch": epoch, "trained": self.trained[epoch], "dropped": self.dropped[epoch], "total": total}
        self._write(sums)
        return sums

    def _count_bad(self, epoch: int) -> int:
        """Unusable samples of an epoch that are in the file by now, the newest of this process included."""
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
        """Begin a run, or go on with one: what lies behind is kept, what will be met again is taken out of the file.

        Args:
            epoch: where the run begins.
            taken: the epoch's samples that were taken before that; empty at an epoch's start.
        """
        if self.path is None or not self.path.exists():
            self.trained[epoch] = len(taken)
            return
        if epoch == 0 and not len(taken):  # another run's, in the same folder
            os.replace(self.path, self.path.with_name("ledger.previous.jsonl"))
            return
        behind, kept = set(map(int, taken)), []
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:  # the end of the file, or a line that a crash cut off
                continue
            if entry["epoch"] < epoch:
                kept.append(line)
            elif entry["epoch"] == epoch and entry.get("index") in behind:
                kept.append(line)
                self.dropped[epoch] += 1
        self.trained[epoch] = len(taken) - self.dropped[epoch]
        write_whole(self.path, lambda target: target.write_text("".join(f"{line}\n" for line in kept), "utf-8"))

    def _write(self, entry: dict) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)


class Unrecorded:
    """Takes the samples that were left out from each batch of a run without `LedgerHook`: counts and logs them.

    The dataset's `max_bad_samples` holds here too, but for this process alone and for the run, not per epoch.
    """

    def __init__(self):
        self._ledger = Ledger(None)

    def take_from(self, batch: dict) -> None:
        """Remove `dropped` from a batch, if `LedgerHook` hasn't done so.

        Raises:
            TooManyBadSamples: the ceiling is passed.
        """
        for sample in batch.pop("dropped", ()):
            self._ledger.max_bad_samples = sample["max_bad_samples"]
            self._ledger.account(0, 0, [sample])
            print_log(
                f"sample left out ({self._ledger.dropped[0]} so far), {sample['dropped']}: {sample['message']}; with "
                "custom_hooks=[dict(type=LedgerHook)] every one is in work_dir/ledger.jsonl",
                "current",
                logging.WARNING,
            )


@HOOKS.register_module()
class LedgerHook(Hook):
    """Keeps the ledger of a run: takes the samples that were left out from each batch, before the model sees it.

    Args:
        max_bad_samples: more unusable samples than this, of an epoch and over all ranks that share the work directory,
            stop the run; None takes the dataset's own `max_bad_samples`.
    """

    priority = "VERY_HIGH"

    def __init__(self, max_bad_samples: int | None = None):
        self.max_bad_samples = max_bad_samples
        self.ledger: Ledger | None = None
        self._epoch = 0

    def before_train(self, runner) -> None:
        ceiling = self.max_bad_samples
        if ceiling is None:
            ceiling = getattr(runner.train_dataloader.dataset, "max_bad_samples", 100)
        self.ledger = Ledger(Path(runner.work_dir) / "ledger.jsonl", ceiling)
        self._epoch, position = self._place(runner)
        if get_rank() == 0:
            self.ledger.begin(self._epoch, self._taken(runner, position))
            describe = getattr(self._plan(runner)[0], "describe_data", None)
            if describe is not None:
                print_log(describe(), "current", logging.INFO)
        barrier()  # nobody writes before the file is ready
        self._enter_plan(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch: list[dict] | dict | None = None) -> None:
        """Enters the micro-batches of an optimizer step; all are of one epoch."""
        epoch, _ = self._place(runner)
        if epoch != self._epoch:
            self._close(runner)
            self._epoch = epoch
            self._enter_plan(runner)
        for batch in [data_batch] if isinstance(data_batch, dict) else data_batch:  # a dict from MMEngine's own loops
            trained = sum(source != FILLER for source in batch["sources"])
            self.ledger.account(epoch, trained, batch.pop("dropped", ()))

    def after_train(self, runner) -> None:
        self._close(runner)

    def _place(self, runner) -> tuple[int, int]:
        """The epoch that the current batch is of, and how many samples (or packs) of it a resumed run has behind it.

        The iterator knows; a count of batches doesn't, since packs are not as many in every epoch.
        """
        iterator = getattr(getattr(runner, "train_loop", None), "dataloader_iterator", None)
        if hasattr(iterator, "position"):
            return iterator.epoch, iterator.position()["position"] if iterator.plan is not None else 0
        return runner.iter // max(len(runner.train_dataloader), 1), 0

    def _plan(self, runner):
        """The sampler that plans epochs (it has `left_out`), and the one that packs, if any (it has `packs`)."""
        batch_sampler = runner.train_dataloader.batch_sampler
        sampler = getattr(batch_sampler, "sampler", None) or runner.train_dataloader.sampler
        return sampler, batch_sampler if hasattr(batch_sampler, "packs") else None

    def _taken(self, runner, position: int) -> Sequence[int]:
        """The samples of the current epoch that lie before a place in it."""
        sampler, packing = self._plan(runner)
        if not position:
            return ()
        if packing is None:
            return sampler.order(self._epoch)[:position]
        packs = packing.packs(self._epoch)
        return packs.order[: packs.ends[min(position, len(packs)) - 1]]

    def _enter_plan(self, runner) -> None:
        """What the plan of an epoch leaves out is known before its first step."""
        if get_rank() == 0:
            left_out = getattr(self._plan(runner)[0], "left_out", lambda: [])()
            self.ledger.account(self._epoch, 0, left_out)

    def _close(self, runner) -> None:
        counts = torch.tensor([self.ledger.trained[self._epoch], self.ledger.dropped[self._epoch]])
        all_reduce(counts)
        if get_rank() == 0:
            self.ledger.trained[self._epoch], self.ledger.dropped[self._epoch] = counts.tolist()
            self.ledger.close_epoch(self._epoch, len(runner.train_dataloader.dataset))
