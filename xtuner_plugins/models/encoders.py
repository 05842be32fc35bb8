"""The blocks of an encoder that features depend on, the weights that none depends on, and stochastic depth."""

from __future__ import annotations

from torch import nn

from ..hub.modeling_intern_vit import num_used_layers
from ..ranges import check


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


def set_drop_path(encoder: nn.Module, rate: float) -> None:
    """Sets the stochastic depth of an encoder, whatever its base says: blocks that train skip their work at random.

    It is the official linear rule: from 0 in the first block to ``rate`` in the last, for each tile by itself.

    Raises:
        ValueError: A rate out of range, or above 0 for an encoder that has none.
    """
    check("drop_path", rate)
    if hasattr(encoder, "encoder"):
        encoder.encoder.set_drop_path(rate)
    elif rate:
        raise ValueError(f"drop_path={rate}: this kind of encoder has no stochastic depth, InternViT has; set it to 0")
