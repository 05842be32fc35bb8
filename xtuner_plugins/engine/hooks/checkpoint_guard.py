"""Refuses a checkpoint of another model."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..steps import unwrap
from ..strategy import require_same_parameters


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuses a checkpoint of another model: MMEngine would load what fits and only warn about the rest.

    Raises:
        ValueError: Parameters are missing from the checkpoint, unknown to the model, or differ in shape.
    """

    def after_load_checkpoint(self, runner, checkpoint: Mapping) -> None:
        """Compares names and shapes before MMEngine loads them."""
        if "state_dict" not in checkpoint:  # a DeepSpeed directory, which the strategy has checked
            return
        expected = {name: tuple(value.shape) for name, value in unwrap(runner.model).state_dict().items()}
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        require_same_parameters(expected, found)
