"""The vision encoders that training knows: one row each, keyed by the ``model_type`` of the vision config."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class EncoderFamily:
    """What training needs to know of an encoder beside its class.

    Attributes:
        lora_targets: Names of the linear layers of a block, what LoRA adapts by default.
    """

    lora_targets: tuple[str, ...]


_TRANSFORMERS_LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

ENCODER_FAMILIES: dict[str, EncoderFamily] = {
    # The official name for every InternViT, the 300M included.
    "intern_vit_6b": EncoderFamily(lora_targets=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "clip_vision_model": EncoderFamily(lora_targets=_TRANSFORMERS_LINEARS),
    "siglip_vision_model": EncoderFamily(lora_targets=_TRANSFORMERS_LINEARS),
}


def encoder_family(model_type: str) -> EncoderFamily:
    """The row of ``model_type``.

    Raises:
        ValueError: The encoder has no row.
    """
    try:
        return ENCODER_FAMILIES[model_type]
    except KeyError:
        known = ", ".join(ENCODER_FAMILIES)
        raise ValueError(
            f"vision encoder type {model_type!r} cannot be trained; known: {known} "
            "(a new one is a row in models/encoders.py)"
        ) from None


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
