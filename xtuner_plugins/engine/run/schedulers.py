"""Learning rate schedules in optimizer steps, with warm-up as a share of the run."""

from __future__ import annotations

import math
from typing import Any

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from ...ranges import check


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):
    """Linear warm-up over a share of the run, then a cosine down to ``eta_min`` at its end.

    ::

        lr      .-.
               /   '.
              /      '-.
             /          '-._
        0   '---------------- optimizer steps
            0   w           N            w = ceil(warmup_ratio * N); step w - 1 is the first with the full lr

    Args:
        optimizer: MMEngine's optimizer wrapper.
        warmup_ratio: Share of the run's optimizer steps, at least 0 and below 1.
        eta_min: Learning rate at the end.
        end: Optimizer steps of the run (N); MMEngine fills it in.
        **kwargs: As MMEngine's schedulers.

    Raises:
        ValueError: A ratio out of range.
    """

    def __init__(self, optimizer: Any, warmup_ratio: float = 0.0, eta_min: float = 0.0, end: int = 1, **kwargs):
        check("warmup_ratio", warmup_ratio)
        self.warmup_ratio, self.eta_min = warmup_ratio, eta_min
        super().__init__(optimizer, **{**kwargs, "end": end, "by_epoch": False})

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores the saved step, but not the length of the run, which may have changed."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "end"})

    def _get_value(self) -> list[float]:
        step, warmup = self.last_step, math.ceil(self.warmup_ratio * self.end)
        if step < warmup:
            return [base * (step + 1) / warmup for base in self.base_values]
        progress = (step - warmup) / (self.end - warmup)  # MMEngine asks for steps before the end alone
        share = (1 + math.cos(math.pi * progress)) / 2
        return [self.eta_min + (base - self.eta_min) * share for base in self.base_values]


def count_steps(schedulers: Any) -> Any:
    """Scheduler configs that count optimizer steps.

    `WarmupCosineLR` always does; MMEngine fills in its end.

    Args:
        schedulers: ``param_scheduler`` of a config: None, a dict, or a list of them; built ones stay as they are.

    Raises:
        ValueError: One that counts epochs. MMEngine would step it once at the end of the run, or convert it by the
            loader's length, which counts micro-batches.
    """
    if isinstance(schedulers, (list, tuple)):
        return [count_steps(item) for item in schedulers]
    if not isinstance(schedulers, dict) or "type" not in schedulers:
        return schedulers
    kind, own = schedulers["type"], WarmupCosineLR.__name__
    if kind is WarmupCosineLR or (isinstance(kind, str) and kind.rpartition(".")[2] == own):  # a dump has its path
        return {**schedulers, "by_epoch": False}
    if schedulers.get("by_epoch", True):
        name = getattr(kind, "__name__", kind)
        remedy = f"set param_scheduler to {own}, or give it by_epoch=False with begin and end in optimizer steps"
        raise ValueError(f"{name} counts epochs; {remedy}")
    return schedulers
