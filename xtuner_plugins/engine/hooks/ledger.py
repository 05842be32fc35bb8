"""Keeps the ledger of a run (see `xtuner_plugins.datasets.ledger`)."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...datasets.ledger import Ledger
from ...datasets.left_out import FILLER
from ..run.loops import PlanIterator, planned_loop


@HOOKS.register_module()
class LedgerHook(Hook):
    """Keeps the ledger of a run: takes the records of samples that were left out out of each batch.

    Raises:
        ValueError: The run has another loop than `PlannedTrainLoop`.
        TooManyBadSamples: Too many samples of an epoch can't be used.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner) -> None:
        """Starts or continues the file, and enters what the first epoch's plan leaves out."""
        iterator = planned_loop(runner).dataloader_iterator
        self.ledger = Ledger(Path(runner.work_dir) / "ledger.jsonl")
        self._epoch = iterator.epoch
        if get_rank() == 0:
            self.ledger.begin(self._epoch, iterator.plan.taken(self._epoch, iterator.position()["position"]))
        barrier()  # no rank writes before the file is ready
        self._enter_plan(iterator)

    def before_train_iter(self, runner, batch_idx: int, data_batch: list[dict]) -> None:
        """Takes the records out of the micro-batches of an optimizer step, which are all of one epoch."""
        iterator = runner.train_loop.dataloader_iterator
        if iterator.epoch != self._epoch:
            self._close(runner)
            self._epoch = iterator.epoch
            self._enter_plan(iterator)
        self._left_out = [sample for batch in data_batch for sample in batch.pop("dropped", ())]
        self._counts = get_rank() % iterator.plan.copies == 0

    def after_train_iter(self, runner, batch_idx: int, data_batch: list[dict], outputs=None) -> None:
        """Enters a step that was made; of ranks that share rows the first does so."""
        if not self._counts:
            return
        trained = sum(source != FILLER for batch in data_batch for source in batch["sources"])
        self.ledger.account(self._epoch, trained, self._left_out)

    def after_train(self, runner) -> None:
        """Enters the totals of the last epoch."""
        self._close(runner)

    def _enter_plan(self, iterator: PlanIterator) -> None:
        """Enters the samples that an epoch's plan leaves out, known before its first step."""
        if get_rank() == 0:
            self.ledger.account(self._epoch, 0, iterator.plan.left_out())

    def _close(self, runner) -> None:
        counts = torch.tensor([self.ledger.trained[self._epoch], self.ledger.dropped[self._epoch]])
        all_reduce(counts)
        if get_rank() == 0:
            self.ledger.trained[self._epoch], self.ledger.dropped[self._epoch] = counts.tolist()
            self.ledger.close_epoch(self._epoch, len(runner.train_dataloader.dataset))
