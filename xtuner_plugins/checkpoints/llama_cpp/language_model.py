"""The GGUF file of a language model: fields, names, rows in the order that llama.cpp's rotary embedding expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import torch

from ...families import LLM_FAMILIES, llm_family
from ..errors import CheckpointError
from ..io.tensors import Computed, LazyTensor, MemoryTensor

PREFIX = "language_model."
OTHER_WAY = "llama.cpp's own convert_hf_to_gguf.py may take it"


def architecture(config: Mapping[str, Any]) -> str:
    """The architecture's name in the file, of an ``llm_config``.

    Raises:
        CheckpointError: a language model that isn't written here.
    """
    row = llm_family(config)
    if row.gguf is None:
        known = ", ".join(row.model_type for row in LLM_FAMILIES.values() if row.gguf)
        raise CheckpointError(f"a GGUF of {row.model_type} is not written here, only of {known}; {OTHER_WAY}")
    return row.gguf


def add_fields(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> list[str]:
    """Writes the sizes of an ``llm_config``; returns notes for the user.

    Raises:
        CheckpointError: a rotary scaling that isn't written here.
    """
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if config["model_type"] == "llama":
        writer.add_rope_dimension_count(head_dim)
    scaling = config.get("rope_scaling") or {}
    kind = _rope_type(scaling)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif kind == "dynamic":
        longest = config["max_position_embeddings"]
        return [f"rope_scaling 'dynamic' has no field in GGUF: keep contexts below {longest:,} tokens"]
    elif kind not in (None, "default", "llama3"):
        raise CheckpointError(f"rope_scaling {kind!r} is not written here; {OTHER_WAY}")
    return []


def _rope_type(scaling: Mapping[str, Any]) -> str | None:
    return scaling.get("rope_type", scaling.get("type"))


def tensors(config: Mapping[str, Any], ours: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors by their names in the file.

    Args:
        config: ``llm_config``.
        ours: all tensors of the model, by our names.

    Raises:
        CheckpointError: a name that the architecture doesn't have.
    """
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture(config))
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    counts = {"attn_q": heads, "attn_k": config.get("num_key_value_heads") or heads}
    found: dict[str, LazyTensor] = {}
    for key, tensor in ours.items():
        if not key.startswith(PREFIX):
            continue
        name = names.get_name(key.removeprefix(PREFIX), try_suffixes=(".weight", ".bias"))
        if name is None:
            raise CheckpointError(f"{key} has no name in a GGUF of {config['model_type']}; {OTHER_WAY}")
        part = name.split(".")[-2] if name.count(".") > 1 else ""
        interleaved = config["model_type"] == "llama" and part in counts
        found[name] = _interleave(tensor, counts[part]) if interleaved else tensor
    if _rope_type(config.get("rope_scaling") or {}) == "llama3":
        found["rope_freqs.weight"] = MemoryTensor(_llama3_factors(config))
    return found


def _interleave(tensor: LazyTensor, num_heads: int) -> LazyTensor:
    """Rows of a query or key projection, per head, in llama.cpp's order for Llama.

    transformers rotates dimension i with i + d/2, llama.cpp's Llama rotates neighbours::

        transformers   a0 a1 a2 a3 | b0 b1 b2 b3
        llama.cpp      a0 b0 a1 b1 a2 b2 a3 b3
    """
    size = tensor.shape[0] // num_heads

    def rows(start: int, stop: int) -> torch.Tensor:
        first, last = start // size, -(-stop // size)
        heads = tensor.rows(first * size, last * size).read()
        heads = heads.view(last - first, 2, size // 2, *tensor.shape[1:]).transpose(1, 2).reshape(heads.shape)
        return heads[start - first * size : stop - first * size]

    return Computed(rows, tensor.dtype, tensor.shape)


def _llama3_factors(config: Mapping[str, Any]) -> torch.Tensor:
    """By what Llama 3.1's scaling divides each rotary frequency, float32 ``[head_dim / 2]``."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.configuration_llama import LlamaConfig

    fields = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    llama = LlamaConfig(**fields)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](llama, "cpu")
    plain = llama.rope_theta ** (-torch.arange(0, len(scaled) * 2, 2, dtype=torch.float32) / (2 * len(scaled)))
    return (plain / scaled).float()
