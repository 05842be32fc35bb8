"""Language models whose classes transformers lacks, as classes that it has: InternLM2 as Llama, Qwen (v1) as Qwen2.

InternLM2 is bit-exact; rows of q and k keep their order, as both rotate halves. Qwen-7B-Chat is exact up to
``seq_length`` tokens: on longer texts the original stretches its rotary base and scales attention.
"""

from collections.abc import Mapping

from .mapping import KeyMapping, Row

CODE = ("configuration_internlm2.py", "modeling_internlm2.py")  # runs InternLM2, beside the code that its config names
BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.logn_list")  # endings of stored names that aren't weights
_HERE, _QWEN = "model.layers.{i}.", "transformer.h.{i}."
_HEADS = tuple(f"{_HERE}self_attn.{n}_proj.{{p}}" for n in "qkv")
# Names without prefix: Llama's and Qwen2's, InternLM2's, Qwen's
_NAMES = (
    ("model.embed_tokens.weight", "model.tok_embeddings.weight", "transformer.wte.weight"),
    (_HERE + "input_layernorm.weight", _HERE + "attention_norm.weight", _QWEN + "ln_1.weight"),
    (_HERE + "post_attention_layernorm.weight", _HERE + "ffn_norm.weight", _QWEN + "ln_2.weight"),
    (_HEADS, _HERE + "attention.wqkv.{p}", _QWEN + "attn.c_attn.{p}"),
    (_HERE + "self_attn.o_proj.{p}", _HERE + "attention.wo.{p}", _QWEN + "attn.c_proj.{p}"),
    (_HERE + "mlp.gate_proj.weight", _HERE + "feed_forward.w1.weight", _QWEN + "mlp.w2.weight"),
    (_HERE + "mlp.up_proj.weight", _HERE + "feed_forward.w3.weight", _QWEN + "mlp.w1.weight"),
    (_HERE + "mlp.down_proj.weight", _HERE + "feed_forward.w2.weight", _QWEN + "mlp.c_proj.weight"),
    ("model.norm.weight", "model.norm.weight", "transformer.ln_f.weight"),
    ("lm_head.weight", "output.weight", "lm_head.weight"),
)


def internlm2_keys(config: Mapping) -> KeyMapping:
    """Llama <-> InternLM2; a key head's rows of wqkv are its query heads, the key and the value."""
    groups = config["num_key_value_heads"]
    shares = ((config["num_attention_heads"] // groups, 1, 1), groups)
    rows = [Row(ours, theirs, *(shares if ours is _HEADS else ())) for ours, theirs, _ in _NAMES]
    return KeyMapping(rows, "Llama", "InternLM2")


def qwen_keys(config: Mapping) -> KeyMapping:
    """Qwen2 <-> Qwen, whatever the config."""
    return KeyMapping([Row(ours, theirs) for ours, _, theirs in _NAMES], "Qwen2", "Qwen")


def internlm2_config(config: Mapping) -> dict:
    """Llama's config from InternLM2's."""
    return {
        **{key: value for key, value in config.items() if key not in ("bias", "architectures", "model_type")},
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": bool(config.get("bias", True)),
        "mlp_bias": False,
    }


def qwen_config(config: Mapping) -> dict:
    """Qwen2's config from Qwen's."""
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return {
        **{name: config[name] for name in same},
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "intermediate_size": config["intermediate_size"] // 2,
        "num_key_value_heads": config["num_attention_heads"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        "rope_theta": float(config.get("rotary_emb_base", 10000)),
        "max_position_embeddings": config["seq_length"],
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_sliding_window": False,
        "initializer_range": config.get("initializer_range", 0.02),
    }


# By ``model_type``: the config and the names of the class that runs it
LANGUAGES = {"internlm2": (internlm2_config, internlm2_keys), "qwen": (qwen_config, qwen_keys)}
