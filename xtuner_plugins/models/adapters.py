"""LoRA by part, with PEFT. Adapters go in by injection, so that every other name stays the official one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

ADAPTER_NAME = "default"
MODELS.register_module(module=LoraConfig, force=True)  # so that configs may name it by string, as other types


def build_lora_config(settings: Mapping[str, Any] | LoraConfig, default_targets: tuple[str, ...]) -> LoraConfig:
    """A PEFT config from ``dict(type=LoraConfig, r=..., lora_alpha=...)``.

    Args:
        settings: As written in a training config; `type` may be left out.
        default_targets: Linear layers to adapt where ``target_modules`` isn't given.

    Raises:
        ValueError: A setting that PEFT doesn't know or refuses, or a type other than ``LoraConfig``.
    """
    if isinstance(settings, LoraConfig):
        return settings
    options = dict(settings)
    cls = options.pop("type", LoraConfig)
    if isinstance(cls, str):
        cls = MODELS.get(cls)
    if cls is not LoraConfig:
        raise ValueError(f"LoRA settings need type=LoraConfig (from peft), got {cls!r}")
    # MMEngine's containers are subclasses that PEFT doesn't always recognize.
    options = {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in options.items()}
    options.setdefault("target_modules", list(default_targets))
    dropout = options.get("lora_dropout", 0.0)
    if not 0 <= dropout < 1:  # PEFT takes a negative one for none.
        raise ValueError(f"lora_dropout={dropout!r} is out of range; give 0 or more, and less than 1")
    try:
        return LoraConfig(**options)
    except TypeError as error:
        raise ValueError(f"LoRA settings: {error}") from None


def inject_lora(part: nn.Module, settings: Mapping[str, Any] | LoraConfig, default_targets: tuple[str, ...]) -> None:
    """Adds LoRA to the linear layers of ``part`` in place; the layers' own weights become frozen ``base_layer``s.

    Raises:
        ValueError: No layer of the part matches ``target_modules``.
    """
    config = build_lora_config(settings, default_targets)
    inject_adapter_in_model(config, part, adapter_name=ADAPTER_NAME)
    for name, parameter in part.named_parameters():
        parameter.requires_grad_("lora_" in name or "trainable_tokens_delta" in name)
