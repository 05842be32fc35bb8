"""The blocks of an encoder that features depend on, and the weights that none depends on."""

from __future__ import annotations

from torch import nn

from ..hub.modeling_intern_vit import num_used_layers


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


def used_blocks(encoder: nn.Module, select_layer: int) -> list[nn.Module]:
    """The blocks of InternViT or a `TransformersTower` that features of ``select_layer`` depend on, in order."""
    blocks = encoder.layers if hasattr(encoder, "layers") else encoder.encoder.layers
    return list(blocks[: num_used_layers(select_layer, len(blocks))])
