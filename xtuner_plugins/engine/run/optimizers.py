"""AdamW of PyTorch, whose fused kernel takes the step on a GPU. MMEngine registers others, such as ``AdamW8bit``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def build_adamw(
    params: Iterable,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> torch.optim.AdamW:
    """`torch.optim.AdamW`, fused where there is a GPU; a checkpoint goes on with or without one."""
    fused = torch.cuda.is_available() or None  # None: PyTorch chooses
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def describe_optimizer(optimizer: Any) -> str:
    """The live optimizer for the run contract: class, library, and whether it is fused."""
    inner = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed's ZeRO optimizers hold it
    fused = ", fused" if any(group.get("fused") for group in inner.param_groups) else ""
    return f"{type(inner).__name__} of {type(inner).__module__.partition('.')[0]}{fused}"
