"""Mapping tables: nothing collides, round trips are exact, and what no row covers is named."""

import pytest
import torch

from xtuner_plugins.export import llava
from xtuner_plugins.weights import hf, internlm2, qwen1
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.mapping import inside
from xtuner_plugins.weights.reading import CheckpointError

SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=40,
)


def test_the_groups_of_internlm2():
    fused = torch.randn(64, 32)
    mapping, name = internlm2.keys(SIZES), "model.layers.1.attention.wqkv.weight"
    llama = mapping.to_right({name: MemoryTensor(fused)})
    heads = fused.view(2, 4, 8, 32)  # [kv heads, 2 q + k + v, dim, D]
    for part, expected in (("q", heads[:, :2]), ("k", heads[:, 2]), ("v", heads[:, 3])):
        assert torch.equal(llama[f"model.layers.1.self_attn.{part}_proj.weight"].read(), expected.reshape(-1, 32))
    assert torch.equal(mapping.to_left(llama)[name].read(), fused)


ALL = {
    "hf": hf.KEYS,
    "internlm2": internlm2.keys(SIZES),
    "qwen1": qwen1.KEYS,
    "llava": llava.KEYS,
    "inside": inside(internlm2.keys(SIZES)),
}


def test_tables_are_bijections():
    """Filled templates: each left name leads to right names that all lead back to it, and no two rows share a name."""
    for name, table in ALL.items():
        seen_left, seen_right = set(), set()
        for row in table.rows:
            for p in ("weight", "bias"):
                fill = dict(i="3", p=p, rest="model.layers.3.x.weight")
                left = row.left.format(**fill)
                renamed = table.to_right({left: MemoryTensor(torch.ones(24, 1))})
                assert tuple(renamed) == tuple(right.format(**fill) for right in row.rights), name
                assert table.to_left(renamed).keys() == {left}
                if "{p}" in row.left or p == "weight":
                    assert left not in seen_left and not seen_right & renamed.keys()
                    seen_left.add(left)
                    seen_right |= renamed.keys()


def test_uncovered_and_incomplete():
    with pytest.raises(CheckpointError, match="odd.weight is not a tensor of the official InternVL format"):
        hf.KEYS.to_right({"odd.weight": MemoryTensor(torch.ones(1))})
    name = "vision_tower.encoder.layer.0.attention.q_proj.weight"
    with pytest.raises(CheckpointError, match=r"qkv\.weight can't be put together.*k_proj"):
        hf.KEYS.to_left({name: MemoryTensor(torch.ones(1, 1))})
    parts = {f"vision_tower.encoder.layer.0.attention.{n}_proj.weight": MemoryTensor(torch.ones(2, 1)) for n in "qk"}
    for odd in (torch.ones(5, 1), torch.ones(2, 3), torch.ones(2, 1).half()):
        with pytest.raises(CheckpointError, match="tensors that belong together|can't be cut"):
            hf.KEYS.to_left({**parts, "vision_tower.encoder.layer.0.attention.v_proj.weight": MemoryTensor(odd)})
    with pytest.raises(CheckpointError, match="65 rows can't be cut in 2 groups of the shares"):
        internlm2.keys(SIZES).to_right({"model.layers.0.attention.wqkv.weight": MemoryTensor(torch.ones(65, 1))})
