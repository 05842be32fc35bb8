"""Which of an encoder's weights train."""

from __future__ import annotations

from torch import nn


def freeze_unused(encoder: nn.Module, select_layer: int) -> int:
    """Stops the gradient of weights that no feature depends on, such as CLIP's layers after ``select_layer``.

    Wrappers that wait for every trainable parameter's gradient (DDP) would wait for theirs forever. Call it after
    adapters were added, theirs are frozen too. InternViT's towers end at the layer in use, so nothing happens there.

    Returns:
        How many parameter tensors were trainable and no longer are.
    """
    modules = encoder.unused_modules(select_layer) if hasattr(encoder, "unused_modules") else []
    unused = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in unused:
        parameter.requires_grad_(False)
    return len(unused)
