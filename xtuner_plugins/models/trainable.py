"""Which parameters train: whole parts, the encoder's last blocks, adapters, the LLM's head, new token rows, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ..checkpoints.lora import token_rows
from ..families import encoder_family, llm_family
from .adapters import inject_lora
from .encoders import freeze_unused, used_blocks


@dataclass(frozen=True)
class WhatTrains:
    """What a run trains, as the settings of `VisionLanguageModel` say it; see there.

    Raises:
        ValueError: Settings that contradict each other.
    """

    freeze_visual_encoder: bool
    visual_encoder_last_layers: int | None
    freeze_projector: bool
    freeze_llm: bool
    train_head: bool
    train_new_tokens: bool
    visual_encoder_lora: Mapping[str, Any] | None
    llm_lora: Mapping[str, Any] | None
    visual_encoder_quantization: Mapping[str, Any] | None
    llm_quantization: Mapping[str, Any] | None

    def __post_init__(self):
        for part in ("visual_encoder", "llm"):
            if getattr(self, f"freeze_{part}"):
                continue
            for setting, reason in (
                ("lora", "LoRA trains beside frozen weights"),
                ("quantization", "packed weights don't"),
            ):
                if getattr(self, f"{part}_{setting}") is not None:
                    raise ValueError(f"{part}_{setting} is set, so set freeze_{part}=True: {reason}")
        self._check_last_layers()
        self._check_head_and_rows()

    def _check_last_layers(self) -> None:
        if self.visual_encoder_last_layers is None:
            return
        setting = f"visual_encoder_last_layers={self.visual_encoder_last_layers}"
        if not self.freeze_visual_encoder:
            raise ValueError(
                f"{setting} with freeze_visual_encoder=False, which trains all of them; set "
                "freeze_visual_encoder=True, or leave out visual_encoder_last_layers"
            )
        for other in ("visual_encoder_lora", "visual_encoder_quantization"):
            if getattr(self, other) is not None:
                raise ValueError(
                    f"{setting} trains whole blocks; set {other}=None, or leave out visual_encoder_last_layers"
                )

    def _check_head_and_rows(self) -> None:
        for setting in ("train_head", "train_new_tokens"):
            if getattr(self, setting) and not self.freeze_llm:
                raise ValueError(f"{setting}=True with freeze_llm=False, which trains it already; leave out {setting}")
        if self.train_new_tokens and (self.llm_lora or {}).get("trainable_token_indices"):
            raise ValueError("train_new_tokens=True with trainable_token_indices in llm_lora; leave out one of them")
        if self.train_new_tokens and is_deepspeed_zero3_enabled():
            raise ValueError("train_new_tokens=True: ZeRO-3 splits the matrices; use --deepspeed deepspeed_zero2")

    def apply(self, model: nn.Module, tokenizer: Any) -> list[nn.Module]:
        """Freezes and trains the weights of an `InternVLChatModel`, and adds its adapters.

        Args:
            model: With its weights, packed ones included.
            tokenizer: Of the base.

        Returns:
            The frozen blocks below the encoder's trained last ones, in order.

        Raises:
            ValueError: Settings that PEFT refuses, more last layers than there are, or a head that LoRA adapts too.
        """
        encoder, llm, config = model.vision_model, model.language_model, model.config
        targets = encoder_family(config.vision_config.to_dict()).lora_targets
        set_trainable("visual_encoder", encoder, self.freeze_visual_encoder, self.visual_encoder_lora, targets)
        freeze_unused(encoder, model.select_layer)
        set_trainable("projector", model.mlp1, self.freeze_projector, None, ())
        targets = llm_family(config.llm_config.to_dict()).lora_targets
        set_trainable("llm", llm, self.freeze_llm, self.llm_lora, targets)
        if self.train_head:
            train_whole_head(llm)
        if self.train_new_tokens:
            token_rows.attach(llm, token_rows.new_rows(tokenizer, whole_head=self.train_head))
        if self.visual_encoder_last_layers is None:
            return []
        return train_last_blocks(encoder, model.select_layer, self.visual_encoder_last_layers)


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
        ValueError: Settings that PEFT refuses.
    """
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


def train_whole_head(llm: nn.Module) -> None:
    """Trains the head of a frozen LLM.

    Raises:
        ValueError: Its LoRA settings already adapt or save the head.
    """
    head = llm.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ValueError("train_head=True, but llm_lora adapts or saves the head, too; leave out one of them")
    head.requires_grad_(True)
