"""The optimizers that the setting ``optimizer`` names: AdamW of PyTorch and of bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..checkpoints.work_dir import STATE_FORMAT
from ..ranges import BITSANDBYTES, check
from .resume import state_format


def build_adamw(
    params: Iterable,
    name: str = "adamw",
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> torch.optim.Optimizer:
    """An AdamW that holds its two moments as ``name`` says.

    Args:
        params: Parameters or groups of them, as PyTorch's optimizers take them.
        name: ``adamw`` for float32 moments and PyTorch's fused kernel on CUDA; ``adamw_8bit``, ``paged_adamw_8bit`` and
            ``paged_adamw_32bit`` for bitsandbytes', whose 8-bit moments have one scale per 256 numbers, and whose paged
            ones move to the CPU's memory when the GPU's is full.
        lr, betas, eps, weight_decay: As `torch.optim.AdamW`.

    Raises:
        RangeError: Another name.
        ValueError: A paged optimizer without a GPU, or a value that the optimizer's constructor refuses.
    """
    check("optimizer", name)
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    if name not in BITSANDBYTES:
        return FusedAdamW(params, **options)
    bits, is_paged = BITSANDBYTES[name]
    if is_paged and not torch.cuda.is_available():
        raise ValueError(f"optimizer={name!r} needs a GPU; on a CPU take adamw or adamw_8bit")
    from .bitsandbytes_adamw import BitsAndBytesAdamW  # takes a second

    optimizer = BitsAndBytesAdamW(params, **options, optim_bits=bits, is_paged=is_paged)
    for group in optimizer.param_groups:
        group[STATE_FORMAT] = state_format(name)
    return optimizer


class FusedAdamW(torch.optim.AdamW):
    """PyTorch's AdamW; where a group's parameters are on CUDA, one fused kernel takes its step.

    That is decided at every step: DeepSpeed replaces the parameters after the optimizer was built, by such on the CPU
    where it offloads, and a checkpoint brings the choice and the counters of the machine that wrote it.
    """

    def __init__(self, params: Iterable, **options: Any):
        super().__init__(params, **options)
        self.register_step_pre_hook(_settle_fused)


def _settle_fused(optimizer: FusedAdamW, args: tuple, kwargs: dict) -> None:
    for group in optimizer.param_groups:
        fused = can_fuse(group["params"])
        group["fused"] = True if fused else None  # None: PyTorch chooses, as without the setting
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if state:
                state["step"] = state["step"].to(parameter.device if fused else "cpu")


def can_fuse(parameters: Iterable[torch.Tensor]) -> bool:
    """Whether PyTorch's fused kernel takes them: floating-point numbers on CUDA, at least one tensor."""
    parameters = list(parameters)
    return bool(parameters) and all(p.is_cuda and p.is_floating_point() for p in parameters)


def describe_optimizer(optimizer: Any) -> str:
    """The live optimizer for the run contract: class, library, whether fused, and in how many bits its moments are."""
    inner = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed's ZeRO optimizers hold it
    if STATE_FORMAT in inner.param_groups[0]:
        paged = ", paged" if inner.is_paged else ""
        return f"AdamW of bitsandbytes, moments in {inner.args.optim_bits} bits{paged}"
    if not isinstance(inner, FusedAdamW):
        return f"{type(inner).__name__} of {type(inner).__module__.partition('.')[0]}"
    fused = all(can_fuse(group["params"]) for group in inner.param_groups)
    return f"AdamW of PyTorch, {'fused' if fused else 'not fused'}"
