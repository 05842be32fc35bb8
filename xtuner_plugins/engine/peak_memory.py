"""The most memory that this process has needed."""

from __future__ import annotations

import resource

import torch

GIB = 2**30


def peak_gib() -> float:
    """GiB of the GPU since its last reset; on a CPU, of this process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
