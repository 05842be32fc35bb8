"""What a checkpoint tells of its run beside weights: the position in the data, and the preprocessing."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ... import preprocessing
from ...checkpoints.loader import load_tokenizer
from ...datasets import MultimodalDataset
from ..loops import planned_loop
from ..steps import unwrap


@HOOKS.register_module()
class StateHook(Hook):
    """Saves the position in the data and the preprocessing in every checkpoint, and uses them on resuming.

    A checkpoint's ``plan`` is the position in the plan, its ``preprocessing`` what `xtuner_plugins.preprocessing` says.

    Raises:
        ValueError: The run has another loop than `PlannedTrainLoop`.
        PreprocessingError: The checkpoint to resume from was trained with other tiles, template or tokens.
    """

    def before_train(self, runner) -> None:
        """Checks the loop before the first step."""
        planned_loop(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds both to what is saved."""
        iterator = planned_loop(runner).dataloader_iterator
        if iterator.plan.is_seekable:
            checkpoint["plan"] = iterator.position()
        if (lock := self._describe(runner)) is not None:
            checkpoint[preprocessing.KEY] = lock

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Tells the loop where to resume, and refuses to with another preprocessing; `load_from` may have another."""
        if "plan" in checkpoint:
            planned_loop(runner).resume_at = checkpoint["plan"]
        now = self._describe(runner)
        if now is None or preprocessing.KEY not in checkpoint or not getattr(runner, "_resume", False):
            return
        trained, where = checkpoint[preprocessing.KEY], "the checkpoint to resume from"
        remedy = "resume with the config that wrote it, or start a new run with load_from"
        preprocessing.check_same(trained, now, where, remedy)
        preprocessing.check_token_rules(trained, load_tokenizer(runner.cfg.model.base), where)

    @staticmethod
    def _describe(runner) -> dict | None:
        """The preprocessing of the live dataset and model; None for a dataset of another class."""
        dataset = runner.train_dataloader.dataset
        if not isinstance(dataset, MultimodalDataset):
            return None
        pixels = unwrap(runner.model).data_preprocessor
        return preprocessing.describe(dataset, pixels.mean.flatten().tolist(), pixels.std.flatten().tolist())
