"""Settings of PyTorch's allocator on CUDA, which it reads when the first tensor is made there."""

from __future__ import annotations

from collections.abc import Mapping

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the newer name, and the older one
# Lengths differ from batch to batch. Segments that grow leave fewer holes that no later tensor fits.
EXPANDABLE = "expandable_segments:True"


def allocator_settings(env: Mapping[str, str], has_gpu: bool) -> dict[str, str]:
    """What a training process needs in its environment besides ``env``; nothing where the user has set a variable."""
    if not has_gpu or any(name in env for name in VARIABLES):
        return {}
    return {VARIABLES[1]: EXPANDABLE}
