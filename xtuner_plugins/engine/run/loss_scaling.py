"""Dynamic loss scaling for float16, whose smallest number is 6e-8: smaller gradients would become zero.

::

    loss x scale -> backward -> gradients / scale -> update            2000 updates in a row: the scale doubles
                        '-- overflow: no update, the scale is halved, the step is computed again

An overflow skips no sample: `steps.run_step` repeats the step, so the schedule counts updates. GPUs without bfloat16
(T4, RTX 20) need float16. Under DeepSpeed its own scaler does this, see `settle_deepspeed_dtype`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

MIN_SCALE = 1.0


@OPTIM_WRAPPERS.register_module()
class LossScalingOptimWrapper(OptimWrapper):
    """MMEngine's wrapper with a `torch.amp.GradScaler`, on a CPU too; a run in float16 takes it by itself.

    Its state stands in checkpoints beside the optimizer's.

    Attributes:
        loss_scaler: The scaler.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_scaler = torch.amp.GradScaler(self.param_groups[0]["params"][0].device.type)

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        """Differentiates the scaled loss."""
        super().backward(self.loss_scaler.scale(loss), **kwargs)

    def state_dict(self) -> dict:
        """The optimizer's state, and the scaler's under ``loss_scaler``."""
        return {**super().state_dict(), "loss_scaler": self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores both; a checkpoint of a run in another dtype has no scaler, which then starts anew."""
        state_dict = dict(state_dict)
        self.loss_scaler.load_state_dict(state_dict.pop("loss_scaler", self.loss_scaler.state_dict()))
        super().load_state_dict(state_dict)


def scaled_wrapper(settings: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The config of an optimizer wrapper as a model's dtype needs it: float16 needs a scaled loss.

    Args:
        settings: ``optim_wrapper`` of a config.
        dtype: That the model computes in.
    """
    is_plain = settings.get("type", OptimWrapper) in (OptimWrapper, OptimWrapper.__name__)
    return {**settings, "type": LossScalingOptimWrapper} if is_plain and dtype == torch.float16 else dict(settings)


def settle_deepspeed_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The DeepSpeed configuration with the dtype that the model computes in, which is all that decides it.

    Args:
        config: As its file has it: ``bf16.enabled`` and ``fp16.enabled`` are ``"auto"``, what ``dtype`` says, or left
            out.
        dtype: That the model computes in.

    Raises:
        ValueError: The configuration says otherwise.
    """
    sections = {name: dict(config.get(name) or {}) for name in ("bf16", "fp16")}
    for name, wanted in (("bf16", dtype == torch.bfloat16), ("fp16", dtype == torch.float16)):
        if sections[name].get("enabled", "auto") not in ("auto", wanted):
            raise ValueError(
                f"the file sets {name}.enabled={not wanted}, but the model computes in "
                f'{str(dtype).removeprefix("torch.")} (model.dtype); set it to "auto"'
            )
        sections[name]["enabled"] = wanted
    return {**config, **sections}
