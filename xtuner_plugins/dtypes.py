"""The dtype that a model computes in: what ``auto`` takes on a device, and what a user is told about it."""

from __future__ import annotations

import torch

from .ranges import check


def resolve_dtype(name: str, device: torch.device | None = None) -> torch.dtype:
    """The dtype of a name; ``'auto'`` is bfloat16 on CUDA devices that compute in it, float16 on others, else float32.

    Args:
        name: `auto`, `bfloat16`, `float16` or `float32`.
        device: Where the model runs; None for CUDA where there is one.

    Raises:
        ValueError: Another name.
    """
    check("dtype", name)
    if name != "auto":
        return getattr(torch, name)
    on_cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
    if not on_cuda:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def describe_dtype(name: str, dtype: torch.dtype, device: torch.device | str) -> str:
    """What is computed in, where, and whether `auto` chose it.

    Args:
        name: As the user gave it.
        dtype: What it means here.
        device: Where the model runs.
    """
    text = f"{str(dtype).removeprefix('torch.')} on {torch.device(device).type}"
    return f"{text} (auto)" if name == "auto" else text
