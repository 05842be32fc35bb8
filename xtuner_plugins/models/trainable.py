"""Which parameters train: whole parts, the encoder's last blocks, adapters, the LLM's head, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ..families import families_of
from .adapters import inject_lora
from .encoders import freeze_unused, used_blocks


class Part(NamedTuple):
    """How encoder or LLM is held: the settings of `VisionLanguageModel` that bear its name."""

    freeze: bool
    lora: Mapping[str, Any] | None
    quantization: Mapping[str, Any] | None


class WhatTrains(NamedTuple):
    """What a run trains, as the settings of `VisionLanguageModel` say it; see there."""

    visual_encoder: Part
    llm: Part
    freeze_projector: bool
    visual_encoder_last_layers: int | None
    train_head: bool

    def check(self) -> None:
        """Raises `ValueError` on settings that contradict each other."""
        for name, part in (("visual_encoder", self.visual_encoder), ("llm", self.llm)):
            if part.lora is not None and not part.freeze:
                raise ValueError(f"{name}_lora is set, so set freeze_{name}=True: LoRA trains beside frozen weights")
            if part.quantization is not None and not part.freeze:
                raise ValueError(f"{name}_quantization is set, so set freeze_{name}=True: packed weights don't train")
        usual, count = Part(True, None, None), self.visual_encoder_last_layers
        for setting, value, needed in zip(Part._fields, self.visual_encoder, usual, strict=True):
            if count is not None and value != needed:
                name = "freeze_visual_encoder" if setting == "freeze" else f"visual_encoder_{setting}"
                raise ValueError(
                    f"visual_encoder_last_layers={count} trains whole blocks of an encoder that is frozen otherwise; "
                    f"set {name}={needed}, or leave out visual_encoder_last_layers"
                )
        if self.train_head and not self.llm.freeze:
            raise ValueError("train_head=True with freeze_llm=False, which trains it already; leave out train_head")

    def apply(self, model: nn.Module) -> list[nn.Module]:
        """Freezes and trains the weights of an `InternVLChatModel`, and adds its adapters.

        Args:
            model: With its weights, packed ones included.

        Returns:
            The frozen blocks below the encoder's trained last ones, in order.

        Raises:
            ValueError: Settings that PEFT refuses, more last layers than there are, or a head that LoRA adapts too.
        """
        encoder, llm, families = model.vision_model, model.language_model, families_of(model.config.to_dict())
        _train("visual_encoder", encoder, self.visual_encoder, families["visual_encoder"].lora_targets)
        freeze_unused(encoder, model.select_layer)
        _train("projector", model.mlp1, Part(self.freeze_projector, None, None), ())
        _train("llm", llm, self.llm, families["llm"].lora_targets)
        if self.train_head:
            head = llm.get_output_embeddings()
            if type(head) is not nn.Linear:
                raise ValueError("train_head=True, but llm_lora adapts or saves the head, too; leave out one of them")
            head.requires_grad_(True)
        count = self.visual_encoder_last_layers
        return [] if count is None else _train_last(used_blocks(encoder, model.select_layer), count)


def _train(name: str, module: nn.Module, part: Part, targets: tuple[str, ...]) -> None:
    """Freezes or trains the weights of a part, and adds adapters to it, where nothing else is said to ``targets``."""
    for parameter in module.parameters():
        if parameter.is_floating_point():  # packed weights have no gradient
            parameter.requires_grad_(not part.freeze)
    if part.lora is not None:
        try:
            inject_lora(module, part.lora, targets)
        except (TypeError, ValueError) as error:  # PEFT doesn't know the name of the setting
            raise ValueError(f"{name}_lora: {error}") from error


def _train_last(used: list[nn.Module], count: int) -> list[nn.Module]:
    """Trains the last of the blocks that features depend on; the graph begins there. Returns those below."""
    if not 1 <= count <= len(used):
        raise ValueError(
            f"visual_encoder_last_layers={count!r} is out of range: features depend on {len(used)} blocks of the "
            f"encoder; give 1 to {len(used)}"
        )
    for block in used[-count:]:
        block.requires_grad_(True)
    return used[:-count]
