"""Mapping tables: nothing collides, round trips are exact, and what no row covers is named."""

import pytest
import torch

from xtuner_plugins.export import llava
from xtuner_plugins.weights import hf, internlm2, qwen1
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.mapping import inside
from xtuner_plugins.weights.reading import CheckpointError

INTERNLM2 = internlm2.keys(dict(num_attention_heads=4, num_key_value_heads=2))
ALL = (hf.KEYS, INTERNLM2, qwen1.KEYS, llava.KEYS, inside(INTERNLM2))


def tensors(*names, shape=(24, 1)):
    return {name: MemoryTensor(torch.ones(shape)) for name in names}


def test_the_groups_of_internlm2():
    fused, name = torch.randn(64, 32), "model.layers.1.attention.wqkv.weight"
    llama = INTERNLM2.to_right({name: MemoryTensor(fused)})
    heads = fused.view(2, 4, 8, 32)  # [kv heads, 2 q + k + v, dim, D]
    for part, expected in (("q", heads[:, :2]), ("k", heads[:, 2]), ("v", heads[:, 3])):
        assert torch.equal(llama[f"model.layers.1.self_attn.{part}_proj.weight"].read(), expected.reshape(-1, 32))
    assert torch.equal(INTERNLM2.to_left(llama)[name].read(), fused)


def test_tables_are_bijections():
    """Filled templates: each left name leads to right names that all lead back to it, and no two rows share a name."""
    for table in ALL:
        seen = set()
        for row in table.rows:
            for p in ("weight", "bias") if "{p}" in row.left else ("weight",):
                fill = dict(i="3", p=p, rest="model.layers.3.x.weight")
                left, rights = row.left.format(**fill), [right.format(**fill) for right in row.rights]
                renamed = table.to_right(tensors(left))
                assert list(renamed) == rights and list(table.to_left(renamed)) == [left]
                assert not seen & {("left", left), *rights}
                seen |= {("left", left), *rights}


def test_uncovered_and_incomplete():
    q, k, v = (f"vision_tower.encoder.layer.0.attention.{n}_proj.weight" for n in "qkv")
    pair, alike = tensors(q, k, shape=(2, 1)), "tensors that belong together"
    for convert, held, words in (
        (hf.KEYS.to_right, tensors("odd.weight"), "odd.weight is not a tensor of the official InternVL format"),
        (hf.KEYS.to_left, tensors("odd.weight"), "odd.weight is not a tensor of the transformers InternVL format"),
        (hf.KEYS.to_left, tensors(q, v), r"qkv\.weight can't be put together: .*k_proj"),
        (hf.KEYS.to_left, pair | tensors(v, shape=(5, 1)), alike),
        (hf.KEYS.to_left, pair | tensors(v, shape=(2, 3)), alike),
        (hf.KEYS.to_left, pair | {v: MemoryTensor(torch.ones(2, 1).half())}, alike),
        (hf.KEYS.to_left, pair | tensors(v, shape=(3, 1)), "7 rows can't be cut"),
        (
            INTERNLM2.to_right,
            tensors("model.layers.0.attention.wqkv.weight", shape=(65, 1)),
            "65 rows can't be cut in 2 groups of the shares",
        ),
    ):
        with pytest.raises(CheckpointError, match=words):
            convert(held)
