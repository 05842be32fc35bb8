"""Which parameters train: whole parts, the encoder's last blocks, LoRA (by PEFT), the LLM's head, or none.

And which are held in 4 bits (by bitsandbytes, on CUDA and on the CPU), for QLoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from ..families import families_of, target_matcher
from ..ranges import check
from ..weights.merge import ADAPTER_NAME, read_settings
from .blocks import freeze_unused, used_blocks

TRAINED = ("lora_", "trainable_tokens_delta", ".modules_to_save.")  # in names of what PEFT adds
for _settings in (LoraConfig, BitsAndBytesConfig):  # so that configs may name them by string
    MODELS.register_module(module=_settings, force=True)


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
        count = self.visual_encoder_last_layers
        if count is not None and self.visual_encoder != Part(True, None, None):
            raise ValueError(
                f"visual_encoder_last_layers={count} trains whole blocks of an encoder that is frozen otherwise: set "
                "freeze_visual_encoder=True, no visual_encoder_lora and no visual_encoder_quantization, or leave it out"
            )
        if self.train_head and not self.llm.freeze:
            raise ValueError("train_head=True with freeze_llm=False, which trains it already; leave out train_head")

    def apply(self, model: nn.Module) -> list[nn.Module]:
        """Freezes and trains the weights of an `InternVLChatModel`, packed ones included, and adds its adapters.

        Returns:
            The frozen blocks below the encoder's trained last ones, in order; the graph begins behind them.

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
        count, used = self.visual_encoder_last_layers, used_blocks(encoder, model.select_layer)
        if count is None:
            return []
        if not 1 <= count <= len(used):
            raise ValueError(
                f"visual_encoder_last_layers={count!r} is out of range: features depend on {len(used)} blocks of the "
                f"encoder; give 1 to {len(used)}"
            )
        for block in used[-count:]:
            block.requires_grad_(True)
        return used[:-count]


def _train(name: str, module: nn.Module, part: Part, targets: Sequence[str]) -> None:
    """Freezes or trains the weights of a part, and adds adapters to it, where nothing else is said to ``targets``."""
    for parameter in module.parameters():
        if parameter.is_floating_point():  # packed weights have no gradient
            parameter.requires_grad_(not part.freeze)
    if part.lora is not None:
        try:
            inject_lora(module, part.lora, targets)
        except (TypeError, ValueError) as error:  # PEFT doesn't know the name of the setting
            raise ValueError(f"{name}_lora: {error}") from error


def inject_lora(part: nn.Module, settings: Mapping[str, Any], default_targets: Sequence[str]) -> None:
    """Adds LoRA to the linear layers of ``part`` in place; the layers' own weights become frozen ``base_layer``s.

    All other names of parameters stay as they are.

    Args:
        part: Encoder or LLM.
        settings: ``dict(type=LoraConfig, r=..., lora_alpha=...)`` of a training config; `type` may be omitted.
        default_targets: Linear layers to adapt where ``target_modules`` isn't given or is None.

    Raises:
        TypeError: A setting that PEFT doesn't know.
        ValueError: A value that PEFT refuses, or whose adapters can't be merged; another type; an entry of
            ``target_modules`` that matches no layer, or one that isn't linear.
    """
    # MMEngine's containers are subclasses that PEFT doesn't always recognize.
    options = {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in settings.items()}
    cls = options.pop("type", LoraConfig)
    if (MODELS.get(cls) if isinstance(cls, str) else cls) is not LoraConfig:
        raise ValueError(f"LoRA settings need type=LoraConfig (from peft), got {cls!r}")
    if options.get("target_modules") is None:
        options["target_modules"] = list(default_targets)
    elif options["target_modules"] != "all-linear":
        _require_layers(part, options["target_modules"])
    check("lora_dropout", options.get("lora_dropout", 0.0))
    check("lora_rank", options.get("r", 8))  # PEFT's default
    config = LoraConfig(**options)
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
    layers = dict(part.named_modules())
    for target in [targets] if isinstance(targets, str) else targets:
        if not any(map(target_matcher(target if target is targets else [target]), layers)):
            linear = {name.rpartition(".")[2] for name, each in layers.items() if isinstance(each, nn.Linear)}
            raise ValueError(
                f"target_modules: no layer matches {target!r}; give a list of some of {', '.join(sorted(linear))}, or "
                "None for those of every block"
            )


def build_quantization_config(settings: Mapping[str, Any], part: str) -> BitsAndBytesConfig:
    """A config from ``dict(type=BitsAndBytesConfig, load_in_4bit=True, ...)`` of ``part``.

    Raises:
        ValueError: An unknown setting, or other than 4 bits.
    """
    options = {key: value for key, value in settings.items() if key != "type"}
    known = {*vars(BitsAndBytesConfig(load_in_4bit=True)), "load_in_4bit", "load_in_8bit"}
    if unknown := options.keys() - known:
        raise ValueError(f"{part}_quantization: BitsAndBytesConfig has no setting {', '.join(sorted(unknown))}")
    config = BitsAndBytesConfig(**options)
    if not config.load_in_4bit:
        raise ValueError(f"{part}_quantization: set load_in_4bit=True; weights are held in 4 bits or not packed")
    return config


def linear_quantizer(
    prefix: str, names: tuple[str, ...], config: BitsAndBytesConfig, dtype: torch.dtype
) -> Callable[[nn.Module, str], None]:
    """A function that packs linear layers while a model is loaded (``load_model(filled=...)``).

    A layer is packed as soon as its weight is read, so that the part never exists unpacked. It stays packed when the
    model moves to another device.

    Args:
        prefix: Name of the part in the model.
        names: Names of the layers inside a block (``q_proj``, ``attn.qkv``); heads and embeddings stay as they are.
        config: Of `build_quantization_config`.
        dtype: Dtype that products are computed in.

    Returns:
        A function of (model, name of a submodule).

    Raises:
        ValueError: ZeRO-3, which can't partition packed weights.
    """
    endings = tuple(f".{layer}" for layer in names)
    if is_deepspeed_zero3_enabled():
        raise ValueError("packed weights can't be partitioned by ZeRO-3; use --deepspeed deepspeed_zero2")

    def quantize(model: nn.Module, name: str) -> None:
        linear = model.get_submodule(name)
        if name.startswith(prefix + ".") and name.endswith(endings) and isinstance(linear, nn.Linear):
            model.set_submodule(name, _pack(linear, config, dtype))

    return quantize


def _pack(linear: nn.Linear, config: BitsAndBytesConfig, dtype: torch.dtype) -> nn.Module:
    import bitsandbytes as bnb

    options = dict(compress_statistics=config.bnb_4bit_use_double_quant, quant_type=config.bnb_4bit_quant_type)
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    packed = bnb.nn.Linear4bit(*sizes, compute_dtype=dtype, device="meta", **options)
    packed.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, module=packed, **options)
    packed.bias = linear.bias
    # On CPUs with bfloat16 instructions bitsandbytes would repack the weights when a model is evaluated, into a form of
    # lower precision that has no gradient: a validation would end the training.
    packed.support_avx512bf16_for_cpu = False
    return packed.to(linear.weight.device).requires_grad_(False)
