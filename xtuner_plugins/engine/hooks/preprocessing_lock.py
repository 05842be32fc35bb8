"""Saves the preprocessing of a run in each of its checkpoints."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ... import preprocessing
from ...checkpoints.loader import load_tokenizer
from ...datasets import MultimodalDataset
from ..steps import unwrap


@HOOKS.register_module()
class PreprocessingLockHook(Hook):
    """Adds ``preprocessing`` (see `xtuner_plugins.preprocessing`) to what is saved, and compares it on resuming.

    Raises:
        PreprocessingError: The checkpoint to resume from was trained with other tiles, template or tokens.
    """

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds the preprocessing of the live dataset and model to what is saved."""
        lock = self._describe(runner)
        if lock is not None:
            checkpoint[preprocessing.KEY] = lock

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuses to resume with another preprocessing; a checkpoint in ``load_from`` may have had another."""
        now = self._describe(runner)
        if now is None or preprocessing.KEY not in checkpoint or not getattr(runner, "_resume", False):
            return
        trained, where = checkpoint[preprocessing.KEY], "the checkpoint to resume from"
        remedy = "resume with the config that wrote it, or start a new run with load_from"
        preprocessing.check_same(trained, now, where, remedy)
        preprocessing.check_token_rules(trained, load_tokenizer(runner.cfg.model.base), where)

    @staticmethod
    def _describe(runner) -> dict | None:
        dataset = runner.train_dataloader.dataset
        if not isinstance(dataset, MultimodalDataset):  # a user's own dataset has no such description
            return None
        pixels = unwrap(runner.model).data_preprocessor
        return preprocessing.describe(dataset, pixels.mean.flatten().tolist(), pixels.std.flatten().tolist())
