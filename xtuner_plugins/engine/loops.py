"""The training loop: XTuner's, with a place in the data that is an integer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import loops as mm_loops
from torch.utils.data import DataLoader
from xtuner.engine.runner import TrainLoop


class PlanIterator:
    """Batches without end, epoch after epoch, from any place in the plan.

    MMEngine resumes by fetching every batch that was already trained. This iterator knows its place, so it skips by
    seeking: nothing is read or decoded, and the number of ranks may have changed.

    Args:
        dataloader: With a sampler that can ``seek`` (`PlanSampler`, `PackBatchSampler`); any other sampler is iterated
            the way MMEngine does.

    Attributes:
        epoch: Epochs finished.
        batches: Batches of this rank taken in the current epoch since it was entered.
    """

    def __init__(self, dataloader: DataLoader):
        self._dataloader = dataloader
        self._iterator: Iterator | None = None
        self._skip = 0
        self._start = 0
        self.epoch, self.batches = 0, 0

    @property
    def plan(self) -> Any:
        """The sampler that can seek; None if there is none."""
        batch_sampler = self._dataloader.batch_sampler
        for candidate in (batch_sampler, getattr(batch_sampler, "sampler", None)):
            if hasattr(candidate, "seek"):
                return candidate
        return None

    def position(self) -> dict[str, int]:
        """The place in the plan: the epoch, and the samples (or packs) of it that all ranks together have taken."""
        sampler = self.plan
        per_batch = 1 if sampler is self._dataloader.batch_sampler else self._dataloader.batch_size
        ranks = getattr(sampler, "num_ranks", None) or sampler.sampler.num_ranks
        return {"epoch": self.epoch, "position": self._start + self.batches * per_batch * ranks}

    def skip_to(self, place: dict[str, int], num_batches: int) -> None:
        """Lets the next ``num_batches`` calls return nothing, and those after them go on from ``place``."""
        self.epoch, self._start, self.batches = place["epoch"], place["position"], 0
        self._skip, self._iterator = num_batches, None

    def __iter__(self) -> PlanIterator:
        return self

    def __next__(self) -> Any:
        if self._skip:
            self._skip -= 1
            return None
        if self._iterator is None:
            self._enter()
        try:
            batch = next(self._iterator)
        except StopIteration:
            self.epoch, self._start, self.batches = self.epoch + 1, 0, 0
            self._enter()
            batch = next(self._iterator)
        self.batches += 1
        return batch

    def _enter(self) -> None:
        if self.plan is not None:
            self.plan.seek(self.epoch, self._start)
        elif hasattr(self._dataloader.sampler, "set_epoch"):
            self._dataloader.sampler.set_epoch(self.epoch)
        self._iterator = iter(self._dataloader)


def count_steps(dataloader: DataLoader, max_epochs: float) -> int:
    """Batches of a rank in ``max_epochs`` epochs, of which the last may be a fraction (rounded up)."""
    sampler, whole = dataloader.batch_sampler, int(max_epochs)
    num_steps = getattr(sampler, "num_steps", lambda epoch: len(dataloader))
    rest = math.ceil((max_epochs - whole) * num_steps(whole)) if max_epochs > whole else 0
    return rest + sum(map(num_steps, reversed(range(whole))))  # the first last: its packs are needed next


@LOOPS.register_module()
class PlannedTrainLoop(TrainLoop):
    """XTuner's loop (``max_iters`` or ``max_epochs``), resuming at a place in the plan instead of from the beginning.

    Needs `PlanHook`, which keeps the place in every checkpoint. Arguments as `xtuner.engine.runner.TrainLoop`, but that
    ``max_epochs`` ends with an epoch even where its number of packs differs from the first one's.
    """

    def __init__(
        self,
        runner,
        dataloader: DataLoader | dict,
        max_iters: int | None = None,
        max_epochs: float | None = None,
        **kwargs,
    ):
        if max_epochs is not None and max_iters is None:
            if isinstance(dataloader, dict):
                per_rank = runner._randomness_cfg.get("diff_rank_seed", False)
                dataloader = runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=per_rank)
            max_iters, max_epochs = count_steps(dataloader, max_epochs), None
        # MMEngine's iterator starts its workers when it is built; ours starts them when the place is known.
        with mock.patch.object(mm_loops, "_InfiniteDataloaderIterator", PlanIterator):
            super().__init__(runner, dataloader, max_iters=max_iters, max_epochs=max_epochs, **kwargs)
        self.resume_at: dict[str, int] | None = None

    def run(self):
        """Trains; as MMEngine's, which fetches the batches that lie behind it. Here they are skipped."""
        if self._iter > 0 and self.resume_at is not None and self.dataloader_iterator.plan is not None:
            self.dataloader_iterator.skip_to(self.resume_at, self._iter)
        return super().run()


@HOOKS.register_module()
class PlanHook(Hook):
    """Keeps the place in the data in every checkpoint, and takes it out again on resuming."""

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds ``plan`` (epoch and position) to what is saved."""
        iterator = getattr(runner.train_loop, "dataloader_iterator", None)
        if isinstance(iterator, PlanIterator) and iterator.plan is not None:
            checkpoint["plan"] = iterator.position()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Tells the loop where to go on."""
        if "plan" in checkpoint and isinstance(runner.train_loop, PlannedTrainLoop):
            runner.train_loop.resume_at = checkpoint["plan"]
