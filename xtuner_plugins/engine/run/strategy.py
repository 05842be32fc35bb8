"""XTuner's DeepSpeed strategy, which also calls hooks at checkpoints and reports failed writes on every rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param
from mmengine.dist import is_main_process
from torch import nn
from xtuner.engine import DeepSpeedStrategy as XTunerDeepSpeedStrategy

from ...weights.errors import CheckpointError
from .gradient_sums import hold_sums_alone, sum_gradients_as_told
from .steps import unwrap
from .transfer import fill_engine, read_state, regroup

# What changes in DeepSpeed's scaler of float16 losses, which its own files hold as an object that isn't unpickled.
SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedStrategy(XTunerDeepSpeedStrategy):
    """Calls ``before_save_checkpoint`` and ``after_load_checkpoint``, which MMEngine omits under DeepSpeed.

    A DeepSpeed directory thus holds the position in the data, and whatever else hooks save, like a plain file. A
    checkpoint of other trained parts is refused: DeepSpeed would silently load what fits. The class has XTuner's name
    because MMEngine's runner recognizes DeepSpeed by it.
    """

    def _wrap_model(self, model: Any) -> Any:
        buffers = dict(model.named_buffers(remove_duplicate=False))
        wrapper = super()._wrap_model(model)
        engine = wrapper.model
        _put_back(engine.module, buffers)
        _keep_norms_that_are_not_finite(engine.optimizer)
        self._scaler = vars(getattr(engine.optimizer, "loss_scaler", None) or SimpleNamespace())
        self._scaler["raise_error_at_min_scale"] = False  # `steps.run_step` names the samples
        sum_gradients_as_told(engine.optimizer)
        hold_sums_alone(engine)
        self._failures: list[Exception] = []
        engine.checkpoint_engine.save = _hold_back(engine.checkpoint_engine.save, self._failures)
        engine._copy_recovery_script = _hold_back(engine._copy_recovery_script, self._failures)
        return wrapper

    def save_checkpoint(
        self, filename: str, *, extra_ckpt: dict, callback: Callable[[dict], Any], save_optimizer: bool = True, **kwargs
    ) -> None:
        """As MMEngine's; without the optimizer a plain file of float32 weights (MMEngine's are 16-bit).

        Raises:
            OSError, RuntimeError: This rank failed to write a file; the other ranks have finished the save.
        """
        callback(extra_ckpt)
        if not save_optimizer:
            self._save_weights(filename, extra_ckpt)
            return
        extra_ckpt["loss_scaler"] = {key: self._scaler[key] for key in SCALER_STATE if key in self._scaler}
        super().save_checkpoint(filename=filename, extra_ckpt=extra_ckpt, **kwargs)
        if self._failures:
            failure = self._failures.pop()
            self._failures.clear()
            raise failure

    def _save_weights(self, filename: str, extra: dict) -> None:
        weights = {}
        for name, parameter in unwrap(self.model).named_parameters():
            if parameter.requires_grad:
                whole = safe_get_full_fp32_param(parameter)  # on every rank: it gathers
                if is_main_process():
                    weights[name] = whole.cpu()
        if is_main_process():
            extra.setdefault("meta", {}).update(seed=self.seed)
            torch.save({**extra, "state_dict": weights}, filename)

    def resume(self, filename: str, *, callback: Callable[[dict], Any], **kwargs) -> dict:
        """As MMEngine's, from a plain file or from the directory of any stage and number of ranks; unpickles nothing.

        Raises:
            CheckpointError: The checkpoint holds other trained parameters than the model.
        """
        checkpoint = self._fill(filename, callback, with_optimizer=True)
        regroup(checkpoint["param_schedulers"], self.optim_wrapper.param_groups)
        self.load_scheduler_state_dict(checkpoint.pop("param_schedulers"))
        held = checkpoint.pop("loss_scaler", {})
        self._scaler.update({key: held[key] for key in SCALER_STATE if key in held and key in self._scaler})
        return checkpoint

    def load_checkpoint(self, filename: str, *, callback: Callable[[dict], Any], **kwargs) -> dict:
        """As MMEngine's, weights alone; see `resume`."""
        return self._fill(filename, callback, with_optimizer=False)

    def _fill(self, filename: str, callback: Callable[[dict], Any], with_optimizer: bool) -> dict:
        state = read_state(filename, with_optimizer)
        trained = ((name, p) for name, p in unwrap(self.model).named_parameters() if p.requires_grad)
        expected = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in trained}
        require_same_parameters(expected, {name: tuple(tensor.shape) for name, tensor in state.weights.items()})
        fill_engine(self.model.model, state)
        callback(state.extra)
        return state.extra


def _hold_back(write: Callable, failures: list[Exception]) -> Callable:
    """The function, whose failures are raised when every rank has passed the barriers of DeepSpeed's save.

    An exception inside the save would leave the other ranks waiting for this one.
    """

    def guarded(*args, **kwargs):
        try:
            return write(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            failures.append(error)

    return guarded


def _put_back(model: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Restores the values that buffers had before DeepSpeed rounded them to the dtype of the weights.

    RoPE multiplies ``inv_freq`` by positions: rounded to bfloat16 it is up to .4 % off, which turns queries and keys at
    position 4,096 by radians, and neither DDP nor any program that opens the export computes that model.
    """
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, leaf, buffer.to(getattr(module, leaf).device))


def _keep_norms_that_are_not_finite(optimizer: Any) -> None:
    """Makes a ZeRO optimizer report norms that aren't finite as infinite.

    DeepSpeed reports -1 for such a group, and the norm over all groups then looks valid. Clipping by NaN would make
    every weight NaN, clipping by infinity only those whose gradient isn't finite (their checkpoint isn't written).
    """

    def honest(norm_of: Callable) -> Callable:
        def measured(*args, **kwargs):
            norm = norm_of(*args, **kwargs)
            return torch.where(norm < 0, torch.full_like(norm, math.inf), norm)

        return measured

    step = optimizer.step

    def stepped(*args, **kwargs):
        try:
            return step(*args, **kwargs)
        except AssertionError:
            norm = float(optimizer._global_grad_norm)
            if norm > 0:
                raise
            optimizer._global_grad_norm = norm if norm == 0 else math.nan

    if hasattr(optimizer, "fp32_groups_gradients_flat"):  # ZeRO-1 in bfloat16 asserts that the norm is above 0
        optimizer.step = stepped
    for name in ("get_grad_norm_direct", "complete_grad_norm_calculation_for_cpu_offload"):
        if hasattr(optimizer, name):
            setattr(optimizer, name, honest(getattr(optimizer, name)))


def require_same_parameters(expected: Mapping[str, tuple], found: Mapping[str, tuple]) -> None:
    """Raises where a checkpoint's trained parameters aren't the model's.

    Args:
        expected: Names and shapes that the model trains.
        found: Names and shapes in the checkpoint.

    Raises:
        CheckpointError: Some are missing, unknown, or differ in shape.
    """
    complaints = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    complaints += [f"unknown {name}" for name in sorted(found.keys() - expected.keys())]
    different = [name for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    complaints += [f"{name} is {found[name]}, the model has {expected[name]}" for name in different]
    if complaints:
        shown = "; ".join(complaints[:5]) + (f"; and {len(complaints) - 5} more" if len(complaints) > 5 else "")
        raise CheckpointError(
            f"this checkpoint is of another model or another choice of trained parts: {shown}. "
            "Go on with the config that wrote it, or export it and begin with the export as model.base."
        )
