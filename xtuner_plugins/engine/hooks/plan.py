"""Saves the position in the data in every checkpoint."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..loops import planned_loop


@HOOKS.register_module()
class PlanHook(Hook):
    """Saves the position in the data in every checkpoint, and restores it on resuming.

    Raises:
        ValueError: The run has another loop than `PlannedTrainLoop`.
    """

    def before_train(self, runner) -> None:
        """Checks the loop before the first step."""
        planned_loop(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds ``plan``, the position in the plan, to what is saved."""
        iterator = planned_loop(runner).dataloader_iterator
        if iterator.plan.is_seekable:
            checkpoint["plan"] = iterator.position()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Tells the loop where to resume."""
        if "plan" in checkpoint:
            planned_loop(runner).resume_at = checkpoint["plan"]
