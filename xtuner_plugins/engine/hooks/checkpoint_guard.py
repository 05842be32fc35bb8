"""Refuses a checkpoint of another model, and lets any strategy read the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from ...checkpoints.work_dir import OPTIMIZER_NAMES
from ..steps import unwrap
from ..strategy import require_same_parameters
from ..transfer import number_states, optimizer_names


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuses a checkpoint of another model: MMEngine would load what fits and only warn about the rest.

    A plain file also gets the names of the optimizer's parameters, which a run under DeepSpeed needs to resume from it.

    Raises:
        ValueError: Parameters are missing from the checkpoint, unknown to the model, or differ in shape.
    """

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds the names, where the optimizer's state is saved by number."""
        if "optimizer" in checkpoint:
            checkpoint[OPTIMIZER_NAMES] = optimizer_names(unwrap(runner.model), runner.optim_wrapper.optimizer)

    def after_load_checkpoint(self, runner, checkpoint: Mapping) -> None:
        """Compares names and shapes before MMEngine loads them."""
        if "state_dict" not in checkpoint:  # a run under DeepSpeed: the strategy has checked them
            return
        expected = {name: tuple(value.shape) for name, value in unwrap(runner.model).state_dict().items()}
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        require_same_parameters(expected, found)
        if isinstance(runner.optim_wrapper, OptimWrapper):
            number_states(checkpoint, unwrap(runner.model), runner.optim_wrapper.optimizer)
