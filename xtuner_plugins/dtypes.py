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


def cpu_computes_in_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX512-BF16 or AMX) instead of converting it to float32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def describe_dtype(name: str, dtype: torch.dtype, device: torch.device | str, option: str) -> str:
    """What is computed in and, where ``auto`` chose float32 on a CPU that has bfloat16, how to take that.

    Args:
        name: As the user gave it.
        dtype: What it means here.
        device: Where the model runs.
        option: What a user types to choose, ending in ``=`` or a space.
    """
    text = f"{str(dtype).removeprefix('torch.')} on {torch.device(device).type}"
    if name != "auto":
        return text
    offer = dtype == torch.float32 and torch.device(device).type == "cpu" and cpu_computes_in_bfloat16()
    faster = f"; this CPU also computes in bfloat16, mostly faster: {option}bfloat16" if offer else ""
    return f"{text} (auto){faster}"
