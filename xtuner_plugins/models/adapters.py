"""LoRA for one part of the model, with PEFT. Injected adapters leave all other parameter names as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from ..families import target_matcher
from ..ranges import check
from ..weights.merge import ADAPTER_NAME, read_settings

TRAINED = ("lora_", "trainable_tokens_delta", ".modules_to_save.")  # in names of what PEFT adds
MODELS.register_module(module=LoraConfig, force=True)  # so that configs may name it by string


def inject_lora(part: nn.Module, settings: Mapping[str, Any], default_targets: tuple[str, ...]) -> None:
    """Adds LoRA to the linear layers of ``part`` in place; the layers' own weights become frozen ``base_layer``s.

    Args:
        part: Encoder or LLM.
        settings: ``dict(type=LoraConfig, r=..., lora_alpha=...)`` of a training config; `type` may be omitted.
        default_targets: Linear layers to adapt where ``target_modules`` isn't given or is None.

    Raises:
        ValueError: A setting that PEFT doesn't know or refuses, or whose adapters can't be merged, another type, or an
            entry of ``target_modules`` matches
            no layer or one that isn't linear.
    """
    options = dict(settings)
    cls = options.pop("type", LoraConfig)
    if isinstance(cls, str):
        cls = MODELS.get(cls)
    if cls is not LoraConfig:
        raise ValueError(f"LoRA settings need type=LoraConfig (from peft), got {cls!r}")
    # MMEngine's containers are subclasses that PEFT doesn't always recognize.
    options = {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in options.items()}
    if options.get("target_modules") is None:
        options["target_modules"] = list(default_targets)
    elif options["target_modules"] != "all-linear":
        _require_layers(part, options["target_modules"])
    check("lora_dropout", options.get("lora_dropout", 0.0))
    check("lora_rank", options.get("r", 8))  # PEFT's default
    try:
        config = LoraConfig(**options)
    except TypeError as error:
        raise ValueError(f"LoRA settings: {error}") from None
    read_settings(options)
    inject_adapter_in_model(config, part, adapter_name=ADAPTER_NAME)
    for name, module in part.named_modules():
        if isinstance(module, LoraLayer):
            if not isinstance(module.get_base_layer(), nn.Linear):
                raise ValueError(
                    f"target_modules: {name} is no linear layer, and LoRA is merged into those alone; leave it out, or "
                    "train rows of an embedding with trainable_token_indices"
                )
            # PEFT would copy each input to the adapter's float32, and autocast would cast it back for the product. The
            # norms of DoRA have the input's dtype, and an export merges with norms in float32.
            module.cast_input_dtype_enabled = config.use_dora
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(any(kind in name for kind in TRAINED))


def _require_layers(part: nn.Module, targets: str | list[str]) -> None:
    """Raises `ValueError` where an expression or one of the names matches no layer; PEFT ignores single names."""
    layers = [name for name, _ in part.named_modules()]
    for target in [targets] if isinstance(targets, str) else targets:
        if not any(map(target_matcher(target if target is targets else [target]), layers)):
            linear = {name.rpartition(".")[2] for name, each in part.named_modules() if isinstance(each, nn.Linear)}
            raise ValueError(
                f"target_modules: no layer matches {target!r}; give a list of some of {', '.join(sorted(linear))}, or "
                "None for those of every block"
            )
