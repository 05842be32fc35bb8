"""Linear layers of a part in 4 bits (bitsandbytes), for QLoRA. Runs on CUDA and on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

MODELS.register_module(module=BitsAndBytesConfig, force=True)  # so that configs may name it by string


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
