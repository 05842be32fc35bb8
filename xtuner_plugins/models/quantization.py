"""Linear layers of a part in 4 or 8 bits (bitsandbytes), for QLoRA. Runs on CUDA and on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

MODELS.register_module(module=BitsAndBytesConfig, force=True)  # so that configs may name it by string
# Settings of 8 bits that would do nothing here: heads and embeddings are never packed, packed weights never train.
_WITHOUT_EFFECT = ("llm_int8_skip_modules", "llm_int8_has_fp16_weight", "llm_int8_enable_fp32_cpu_offload")


def build_quantization_config(settings: Mapping[str, Any], part: str = "llm") -> BitsAndBytesConfig:
    """A config from ``dict(type=BitsAndBytesConfig, load_in_4bit=True, ...)``; ``part`` is named in messages.

    Raises:
        ValueError: An unknown setting, neither 4 nor 8 bits or both, or one of 8 bits that would do nothing.
    """
    options = {key: value for key, value in settings.items() if key != "type"}
    unknown = set(options) - set(vars(BitsAndBytesConfig(load_in_4bit=True))) - {"load_in_4bit", "load_in_8bit"}
    if unknown:
        raise ValueError(f"{part}_quantization: BitsAndBytesConfig has no setting {', '.join(sorted(unknown))}")
    config = BitsAndBytesConfig(**options)
    if not (config.load_in_4bit or config.load_in_8bit):
        raise ValueError(f"{part}_quantization: set load_in_4bit=True or load_in_8bit=True")
    for name in _WITHOUT_EFFECT:
        if config.load_in_8bit and getattr(config, name):
            raise ValueError(
                f"{part}_quantization: {name} does nothing here (heads and embeddings are never packed, packed weights "
                "never train); leave it out"
            )
    return config


def linear_quantizer(
    prefix: str, names: tuple[str, ...], settings: Mapping[str, Any], dtype: torch.dtype
) -> Callable[[nn.Module, str], None]:
    """A function that packs linear layers while a model is loaded (``load_model(filled=...)``).

    A layer is packed as soon as its weight is read, so that the part never exists unpacked. It stays packed when the
    model moves to another device.

    Args:
        prefix: Name of the part in the model.
        names: Names of the layers inside a block (``q_proj``, ``attn.qkv``); heads and embeddings stay as they are.
        settings: ``dict(type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type='nf4', ...)``, or
            ``load_in_8bit=True`` with ``llm_int8_threshold``: inputs above it are multiplied in float16.
        dtype: Dtype that products of 4-bit weights are computed in; those of 8-bit weights have their input's.

    Returns:
        A function of (model, name of a submodule).

    Raises:
        ValueError: Unusable settings, or ZeRO-3, which can't partition packed weights.
    """
    config = build_quantization_config(settings)
    endings = tuple(f".{layer}" for layer in names)
    if is_deepspeed_zero3_enabled():
        raise ValueError("packed weights can't be partitioned by ZeRO-3; use --deepspeed deepspeed_zero2")

    def quantize(model: nn.Module, name: str) -> None:
        parent, _, last = name.rpartition(".")
        if name.startswith(prefix + ".") and name.endswith(endings):
            linear = model.get_submodule(name)
            if isinstance(linear, nn.Linear):
                pack = _pack_4bit if config.load_in_4bit else _pack_8bit
                setattr(model.get_submodule(parent), last, pack(linear, config, dtype))

    return quantize


def _pack_4bit(linear: nn.Linear, config: BitsAndBytesConfig, dtype: torch.dtype) -> nn.Module:
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


def _pack_8bit(linear: nn.Linear, config: BitsAndBytesConfig, dtype: torch.dtype) -> nn.Module:
    from .eight_bit import PackedLinear8bit

    _say_nothing_of_casts()
    return PackedLinear8bit(linear, config.llm_int8_threshold)


def _say_nothing_of_casts() -> None:
    """Silences bitsandbytes' line about each product of 8-bit weights: that inputs are rounded to float16 before."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if _is_no_cast not in logger.filters:
        logger.addFilter(_is_no_cast)


def _is_no_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in record.getMessage()
