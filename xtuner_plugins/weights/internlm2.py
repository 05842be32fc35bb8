"""InternLM2, a language model whose class transformers lacks, as Llama; bit-exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .format import LanguageFormat
from .mapping import KeyMapping, Row, Same, stack
from .reading import CheckpointError


@dataclass(frozen=True)
class GroupedQKV(Same):
    """InternLM2's ``wqkv``: per key/value head its query heads, then the key, then the value.

    ::

        wqkv rows   q0 q1 k0 v0 | q2 q3 k1 v1 | ...        2 query heads per group, each of head_dim rows
        q           q0 q1 q2 q3 ...    k  k0 k1 ...    v  v0 v1 ...
    """

    num_heads: int
    num_kv_heads: int

    @property
    def _group(self) -> int:
        return self.num_heads // self.num_kv_heads

    def split(self, tensor):
        group = self._group
        heads = self.num_kv_heads * (group + 2)
        dim, remainder = divmod(tensor.shape[0], heads)
        if remainder:
            raise CheckpointError(f"wqkv has {tensor.shape[0]} rows, not a multiple of {heads} heads")
        block = (group + 2) * dim
        cuts = [(0, group * dim), (group * dim, (group + 1) * dim), ((group + 1) * dim, block)]
        return [stack([tensor.rows(n * block + a, n * block + b) for n in range(self.num_kv_heads)]) for a, b in cuts]

    def join(self, tensors):
        q, k, v = tensors
        dim = k.shape[0] // self.num_kv_heads
        wide = self._group * dim
        pieces = []
        for n in range(self.num_kv_heads):
            pieces += [q.rows(n * wide, (n + 1) * wide), k.rows(n * dim, (n + 1) * dim), v.rows(n * dim, (n + 1) * dim)]
        return stack(pieces)


def read_config(config: Mapping) -> dict:
    """Llama's config from InternLM2's."""
    dropped = ("bias", "attn_implementation", "auto_map", "architectures", "model_type")
    fields = {k: v for k, v in config.items() if k not in dropped}
    bias = bool(config.get("bias", True))
    return {
        **fields,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": bias,
        "mlp_bias": False,
    }


def keys(config: Mapping) -> KeyMapping:
    """InternLM2 <-> Llama, names without prefix. Rows of q and k keep their order: both rotate halves."""
    layer = "model.layers.{i}."
    grouped = GroupedQKV(config["num_attention_heads"], config["num_key_value_heads"])
    return KeyMapping(
        [
            Row("model.tok_embeddings.weight", "model.embed_tokens.weight"),
            Row(layer + "attention.wqkv.{p}", tuple(f"{layer}self_attn.{n}_proj.{{p}}" for n in "qkv"), grouped),
            Row(layer + "attention.wo.{p}", layer + "self_attn.o_proj.{p}"),
            Row(layer + "feed_forward.w1.weight", layer + "mlp.gate_proj.weight"),
            Row(layer + "feed_forward.w3.weight", layer + "mlp.up_proj.weight"),
            Row(layer + "feed_forward.w2.weight", layer + "mlp.down_proj.weight"),
            Row(layer + "attention_norm.weight", layer + "input_layernorm.weight"),
            Row(layer + "ffn_norm.weight", layer + "post_attention_layernorm.weight"),
            Row("model.norm.weight", "model.norm.weight"),
            Row("output.weight", "lm_head.weight"),
        ],
        "InternLM2",
        "Llama",
        ours="right",
    )


INTERNLM2 = LanguageFormat(
    "internlm2", "InternLM2", read_config, keys, code=("configuration_internlm2.py", "modeling_internlm2.py")
)
