"""Which parameters of a part train: all, the encoder's last blocks, adapters, the head, new token rows, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from .adapters import inject_lora
from .encoders import used_blocks


def set_trainable(
    name: str, part: nn.Module, freeze: bool, lora: Mapping[str, Any] | None, targets: tuple[str, ...]
) -> None:
    """Freezes or trains the weights of a part, and adds adapters to it.

    Args:
        name: Of the part in the settings, for messages.
        part: Encoder, projector or LLM.
        freeze: Freeze the part's own weights.
        lora: Settings of its adapters or None.
        targets: Linear layers to adapt where the settings name none.

    Raises:
        ValueError: Adapters on a part that trains whole, or settings that PEFT refuses.
    """
    if lora is not None and not freeze:
        raise ValueError(f"{name}_lora is set, so set freeze_{name}=True: LoRA trains beside frozen weights")
    for parameter in part.parameters():
        if parameter.is_floating_point():  # packed weights have no gradient
            parameter.requires_grad_(not freeze)
    if lora is not None:
        try:
            inject_lora(part, lora, targets)
        except (TypeError, ValueError) as error:  # PEFT doesn't know the name of the setting
            raise ValueError(f"{name}_lora: {error}") from error


def train_last_blocks(encoder: nn.Module, select_layer: int, count: int) -> list[nn.Module]:
    """Trains the last blocks of a frozen encoder; the graph begins at the first of them.

    Args:
        encoder: InternViT, or a `TransformersTower`.
        select_layer: Index into the hidden states; blocks after it don't count.
        count: Blocks to train.

    Returns:
        The frozen blocks below them, in order.

    Raises:
        ValueError: More blocks than the encoder uses, or fewer than one.
    """
    used = used_blocks(encoder, select_layer)
    if not 1 <= count <= len(used):
        raise ValueError(
            f"visual_encoder_last_layers={count!r} is out of range: features depend on {len(used)} blocks of the "
            f"encoder (select_layer={select_layer}); give 1 to {len(used)}"
        )
    for block in used[-count:]:
        block.requires_grad_(True)
    return used[:-count]


def check_last_layers(count: int | None, freeze: bool, lora: Any, quantization: Any) -> None:
    """Raises where ``visual_encoder_last_layers`` contradicts another setting of the encoder.

    Raises:
        ValueError: The encoder trains whole, has adapters or is quantized.
    """
    if count is None:
        return
    if not freeze:
        raise ValueError(
            f"visual_encoder_last_layers={count} with freeze_visual_encoder=False, which trains all of them; set "
            "freeze_visual_encoder=True, or leave out visual_encoder_last_layers"
        )
    for setting, value in (("visual_encoder_lora", lora), ("visual_encoder_quantization", quantization)):
        if value is not None:
            raise ValueError(
                f"visual_encoder_last_layers={count} trains whole blocks; set {setting}=None, or leave out "
                "visual_encoder_last_layers"
            )


def check_llm_extras(train_head: bool, train_new_tokens: bool, freeze: bool, lora: Mapping[str, Any] | None) -> None:
    """Raises where ``train_head`` or ``train_new_tokens`` contradicts another setting of the LLM.

    Raises:
        ValueError: The LLM trains whole, its LoRA settings name rows too, or ZeRO-3 has split the matrices.
    """
    for setting, value in (("train_head", train_head), ("train_new_tokens", train_new_tokens)):
        if value and not freeze:
            raise ValueError(f"{setting}=True with freeze_llm=False, which trains it already; leave out {setting}")
    if train_new_tokens and (lora or {}).get("trainable_token_indices"):
        raise ValueError("train_new_tokens=True with trainable_token_indices in llm_lora; leave out one of them")
    if train_new_tokens and is_deepspeed_zero3_enabled():
        raise ValueError("train_new_tokens=True: ZeRO-3 splits the matrices; use --deepspeed deepspeed_zero2")


def train_whole_head(llm: nn.Module) -> None:
    """Trains the head of a frozen LLM.

    Raises:
        ValueError: Its LoRA settings already adapt or save the head.
    """
    head = llm.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ValueError("train_head=True, but llm_lora adapts or saves the head, too; leave out one of them")
    head.requires_grad_(True)
