"""InternLM2, a language model whose class transformers lacks, as Llama; bit-exact."""

from __future__ import annotations

from collections.abc import Mapping

from .mapping import KeyMapping, Row

BUFFERS = ()  # endings of stored names that aren't weights
CODE = ("configuration_internlm2.py", "modeling_internlm2.py")  # runs it, beside the code that the config names


def read_config(config: Mapping) -> dict:
    """Llama's config from InternLM2's."""
    dropped = ("bias", "attn_implementation", "auto_map", "architectures", "model_type")
    return {
        **{k: v for k, v in config.items() if k not in dropped},
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": bool(config.get("bias", True)),
        "mlp_bias": False,
    }


def keys(config: Mapping) -> KeyMapping:
    """InternLM2 <-> Llama, names without prefix. Rows of q and k keep their order: both rotate halves."""
    layer, groups = "model.layers.{i}.", config["num_key_value_heads"]
    sizes = (config["num_attention_heads"] // groups, 1, 1)  # wqkv: per key head its query heads, the key, the value
    return KeyMapping(
        [
            Row("model.embed_tokens.weight", "model.tok_embeddings.weight"),
            Row(tuple(f"{layer}self_attn.{n}_proj.{{p}}" for n in "qkv"), layer + "attention.wqkv.{p}", sizes, groups),
            Row(layer + "self_attn.o_proj.{p}", layer + "attention.wo.{p}"),
            Row(layer + "mlp.gate_proj.weight", layer + "feed_forward.w1.weight"),
            Row(layer + "mlp.up_proj.weight", layer + "feed_forward.w3.weight"),
            Row(layer + "mlp.down_proj.weight", layer + "feed_forward.w2.weight"),
            Row(layer + "input_layernorm.weight", layer + "attention_norm.weight"),
            Row(layer + "post_attention_layernorm.weight", layer + "ffn_norm.weight"),
            Row("model.norm.weight", "model.norm.weight"),
            Row("lm_head.weight", "output.weight"),
        ],
        "Llama",
        "InternLM2",
    )
