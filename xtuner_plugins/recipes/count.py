"""Parameters of every recipe at its true size, counted on the meta device: no weight is read or made."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn

from ..families import encoder_family, llm_family, target_matcher
from ..hub.configuration_internvl_chat import InternVLChatConfig
from ..hub.constants import PROJECTOR_TYPES
from ..hub.modeling_internvl_chat import InternVLChatModel
from .bases import ENCODERS, LLMS, Base
from .recipe import Recipe, setting_of

TOWERS = {"visual_encoder": "vision_model", "projector": "mlp1", "llm": "language_model"}


@dataclass(frozen=True)
class Count:
    """Parameters of a recipe.

    Attributes:
        total: of the model, adapters not included.
        trained: that get a gradient, adapters included.
        adapters: of LoRA alone.
        packed: held in 4 bits.
    """

    total: int
    trained: int
    adapters: int
    packed: int

    @property
    def gigabytes(self) -> float:
        """Weights, gradients and AdamW's state without activations, over all GPUs together, in 10**9 bytes.

        Frozen weights take 2 bytes (bfloat16), 4-bit ones 0.52 (their scales included), trained ones 16: float32
        weights, gradients and two moments; under DeepSpeed likewise 2 + 2 + 12.
        """
        frozen = self.total - self.packed - (self.trained - self.adapters)
        return (frozen * 2 + self.packed * 0.52 + self.trained * 16) / 1e9


@functools.cache
def meta_model(base: Base) -> InternVLChatModel:
    """The model of a base at its true size, without storage."""
    plain = base.projector_type == "mlp"
    config = InternVLChatConfig(
        vision_config=dict(ENCODERS[base.encoder].config),
        llm_config={**LLMS[base.llm].config, "vocab_size": base.vocab_size},
        downsample_ratio=1.0 if plain else 0.5,
        force_image_size=ENCODERS[base.encoder].config["image_size"],
        projector_type=base.projector_type or PROJECTOR_TYPES[0],
        select_layer=base.select_layer,
        template=base.template,
        ps_version="v2",
    )
    with torch.device("meta"):
        return InternVLChatModel(config)


def count(recipe: Recipe) -> Count:
    """Total, trained and packed parameters of a recipe as shipped."""
    model = meta_model(recipe.architecture)
    parts = {part: model.get_submodule(name) for part, name in TOWERS.items()}
    total = sum(_numel(part) for part in parts.values())
    trained = sum(_numel(parts[part]) for part in recipe.parts("all"))
    if "visual_encoder" in recipe.parts("all"):
        unused = getattr(parts["visual_encoder"], "unused_modules", lambda layer: [])(model.select_layer)
        trained -= sum(_numel(module) for module in unused)
    adapters = sum(_lora(recipe, part, parts[part]) for part in recipe.parts("lora"))
    packed = sum(_numel_of_linears(parts[part], _packed_linears(recipe, part)) for part in recipe.quantized)
    return Count(total, trained + adapters, adapters, packed)


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _family(recipe: Recipe, part: str):
    base = recipe.architecture
    if part == "llm":
        return llm_family(LLMS[base.llm].config)
    return encoder_family(ENCODERS[base.encoder].config)


def _packed_linears(recipe: Recipe, part: str) -> tuple[str, ...]:
    family = _family(recipe, part)
    return family.packed_linears if part == "llm" else family.lora_targets


def _lora(recipe: Recipe, part: str, module: nn.Module) -> int:
    """Weights of the A and B matrices that PEFT would add."""
    rank = setting_of(recipe, "lora_rank")
    targets = setting_of(recipe, "lora_targets") or _family(recipe, part).lora_targets
    return sum(rank * (layer.in_features + layer.out_features) for layer in _linears(module, targets))


def _numel_of_linears(module: nn.Module, targets) -> int:
    return sum(layer.weight.numel() for layer in _linears(module, targets))


def _linears(module: nn.Module, targets) -> list[nn.Linear]:
    """Linear layers that PEFT's rules of `target_modules` match."""
    match = target_matcher(targets)
    return [layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and match(name)]
