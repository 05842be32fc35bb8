"""Qwen (first generation, Qwen-7B-Chat), a language model whose class transformers lacks, as Qwen2."""

from __future__ import annotations

from collections.abc import Mapping

from .mapping import KeyMapping, Row

BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.logn_list")  # endings of stored names that aren't weights
_QWEN, _QWEN2 = "transformer.h.{i}.", "model.layers.{i}."

# Qwen <-> Qwen2, names without prefix. Qwen's w1 is the up projection, its w2 the gate projection.
KEYS = KeyMapping(
    [
        Row("model.embed_tokens.weight", "transformer.wte.weight"),
        Row(_QWEN2 + "input_layernorm.weight", _QWEN + "ln_1.weight"),
        Row(_QWEN2 + "post_attention_layernorm.weight", _QWEN + "ln_2.weight"),
        Row(tuple(f"{_QWEN2}self_attn.{n}_proj.{{p}}" for n in "qkv"), _QWEN + "attn.c_attn.{p}"),
        Row(_QWEN2 + "self_attn.o_proj.weight", _QWEN + "attn.c_proj.weight"),
        Row(_QWEN2 + "mlp.up_proj.weight", _QWEN + "mlp.w1.weight"),
        Row(_QWEN2 + "mlp.gate_proj.weight", _QWEN + "mlp.w2.weight"),
        Row(_QWEN2 + "mlp.down_proj.weight", _QWEN + "mlp.c_proj.weight"),
        Row("model.norm.weight", "transformer.ln_f.weight"),
        Row("lm_head.weight", "lm_head.weight"),
    ],
    "Qwen2",
    "Qwen",
)


def read_config(config: Mapping) -> dict:
    """Qwen2's config from Qwen's, exact up to ``seq_length`` tokens.

    On longer texts the original stretches its rotary base and scales attention, which Qwen2 doesn't.
    """
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"] // 2,
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        "rope_theta": float(config.get("rotary_emb_base", 10000)),
        "max_position_embeddings": config["seq_length"],
        "vocab_size": config["vocab_size"],
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_sliding_window": False,
        "initializer_range": config.get("initializer_range", 0.02),
    }


def keys(config: Mapping) -> KeyMapping:
    """The table; it is the same for every config."""
    return KEYS
