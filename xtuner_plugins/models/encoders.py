"""Freezes the weights of an encoder that no feature depends on."""

from __future__ import annotations

from torch import nn


def freeze_unused(encoder: nn.Module, select_layer: int) -> int:
    """Freezes weights that no feature depends on, such as CLIP's layers after ``select_layer``, and their adapters.

    DDP waits for the gradient of every trainable parameter and would wait forever. Call it after adapters were added.
    InternViT's towers end at the layer in use, so nothing is frozen there.

    Returns:
        Number of parameter tensors that were frozen.
    """
    modules = encoder.unused_modules(select_layer) if hasattr(encoder, "unused_modules") else []
    unused = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in unused:
        parameter.requires_grad_(False)
    return len(unused)
