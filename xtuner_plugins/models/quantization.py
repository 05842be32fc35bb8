"""The LLM's linear layers in 4 bits (bitsandbytes), for QLoRA. Runs on CUDA and on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled


def build_quantization_config(settings: Mapping[str, Any] | BitsAndBytesConfig) -> BitsAndBytesConfig:
    """A config from ``dict(type=BitsAndBytesConfig, load_in_4bit=True, ...)``.

    Raises:
        ValueError: An unknown setting, or not 4 bits.
    """
    if not isinstance(settings, BitsAndBytesConfig):
        options = {key: value for key, value in settings.items() if key != "type"}
        unknown = set(options) - set(vars(BitsAndBytesConfig(load_in_4bit=True))) - {"load_in_4bit", "load_in_8bit"}
        if unknown:
            raise ValueError(f"llm_quantization: BitsAndBytesConfig has no setting {', '.join(sorted(unknown))}")
        settings = BitsAndBytesConfig(**options)
    if not settings.load_in_4bit:
        raise ValueError("llm_quantization: only 4 bits are trained here; set load_in_4bit=True")
    return settings


def quantize_linears(
    part: nn.Module, names: tuple[str, ...], settings: Mapping[str, Any] | BitsAndBytesConfig, dtype: torch.dtype
) -> None:
    """Replaces the linear layers of these names by frozen 4-bit ones, one at a time, in place.

    Weights are packed where the layer stands: on the CPU here, and kept packed when the model moves.

    Args:
        part: The LLM, with its weights loaded.
        names: Last names of the layers (``q_proj``, ...); the head and the embeddings stay as they are.
        settings: ``dict(type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type='nf4', ...)``.
        dtype: What products are computed in.

    Raises:
        ValueError: Unusable settings, or ZeRO-3, which can't partition packed weights.
    """
    import bitsandbytes as bnb

    config = build_quantization_config(settings)
    if is_deepspeed_zero3_enabled():
        raise ValueError("4-bit weights can't be partitioned by ZeRO-3; use --deepspeed deepspeed_zero2")
    found = [(n, m) for n, m in part.named_modules() if isinstance(m, nn.Linear) and n.rsplit(".", 1)[-1] in names]
    for name, linear in found:
        packed = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=dtype,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            device="meta",
        )
        packed.weight = bnb.nn.Params4bit(
            linear.weight.data,
            requires_grad=False,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            module=packed,
        )
        packed.bias = linear.bias
        parent, _, last = name.rpartition(".")
        setattr(part.get_submodule(parent), last, packed.to(linear.weight.device).requires_grad_(False))
