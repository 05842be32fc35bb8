"""Merging one layer at a time gives what PEFT's whole-model merge gives, whatever the block size."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from xtuner_plugins.weights import merge
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.reading import CheckpointError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(6, 10)
        self.head = nn.Linear(10, 7, bias=False)


def adapted(config, seed=0):
    torch.manual_seed(seed)
    net = Net()
    base = {k: v.clone() for k, v in net.state_dict().items()}
    inject_adapter_in_model(config, net)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    parts = {}
    for name, tensor in net.state_dict().items():
        found = merge.split_key(name)
        if found:
            parts.setdefault(found[0], {})[found[1]] = MemoryTensor(tensor.clone())
    for module in net.modules():
        if hasattr(module, "merge"):
            module.merge()
    return base, parts, net


def test_merge_equals_peft():
    for options in (dict(), dict(use_rslora=True), dict(use_dora=True), dict(use_rslora=True, use_dora=True)):
        options = {"r": 4, "lora_alpha": 8, "target_modules": ["proj", "head"], **options}
        base, parts, net = adapted(LoraConfig(**options))
        assert parts.keys() == set(options["target_modules"])
        for layer, tensors in parts.items():
            weight = MemoryTensor(base[f"{layer}.weight"])
            merged = merge.merged_weight(weight, tensors, merge.read_settings(options), layer)
            reference = net.get_submodule(layer).get_base_layer().weight.data
            for rows in (1, 3, 10):  # whatever is read at a time
                total = merged.shape[0]
                blocks = [merged.rows(start, min(start + rows, total)).read() for start in range(0, total, rows)]
                # one rounding of the product in another block shape
                torch.testing.assert_close(torch.cat(blocks), reference, rtol=0, atol=1e-6)
            assert not torch.allclose(merged.read(), base[f"{layer}.weight"], atol=1e-3)


def test_bf16_base_is_merged_in_fp32():
    base = torch.ones(4, 3, dtype=torch.bfloat16)
    parts = {
        "lora_A.weight": MemoryTensor(torch.ones(2, 3)),
        "lora_B.weight": MemoryTensor(torch.full((4, 2), 2.0**-10)),
    }
    merged = merge.merged_weight(MemoryTensor(base), parts, merge.Lora(r=2, lora_alpha=2), "proj").read()
    assert merged.dtype == torch.float32 and torch.equal(merged, torch.full((4, 3), 1 + 2.0**-9))  # bf16 would give 1


def test_names():
    for name, expected in {
        "a.q_proj.lora_A.default.weight": ("a.q_proj", "lora_A.weight"),
        "a.q_proj.lora_B.weight": ("a.q_proj", "lora_B.weight"),
        "e.lora_embedding_A.default": ("e", "lora_embedding_A"),
        "a.lora_magnitude_vector.default.weight": ("a", "lora_magnitude_vector.weight"),
        "a.embed_tokens.token_adapter.trainable_tokens_delta.default": ("a.embed_tokens", merge.TOKEN_ROWS),
        "a.embed_tokens.token_adapter.trainable_tokens_delta": ("a.embed_tokens", merge.TOKEN_ROWS),
        "a.embed_tokens.token_adapter.base_layer.weight": None,
        "a.q_proj.base_layer.weight": None,
        "a.q_proj.weight": None,
    }.items():
        assert merge.split_key(name) == expected


def test_what_is_not_merged():
    a, b, size = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"
    for says, (shapes, base) in {
        r"only lora_A\.weight": ({a: (2, 3)}, (4, 3)),
        "belongs to another base": ({a: (2, 5), b: (4, 2)}, (4, 3)),
        "has rank 3 and no magnitudes of DoRA; the config says r=2": ({a: (3, 3), b: (4, 3)}, (4, 3)),
        "rank 2 and magnitudes of DoRA; the config says r=2": ({a: (2, 3), b: (4, 2), size: (4,)}, (4, 3)),
        "proj is no linear layer": ({a: (2, 3, 2, 2), b: (4, 2, 1, 1)}, (4, 3, 2, 2)),
        "proj is no linear layer, .*trainable_token_indices": ({"lora_embedding_A": (2, 4)}, (4, 3)),
    }.items():
        parts = {name: MemoryTensor(torch.ones(shape)) for name, shape in shapes.items()}
        with pytest.raises(CheckpointError, match=says):
            merge.merged_weight(MemoryTensor(torch.ones(base)), parts, merge.Lora(r=2), "proj")


def test_settings_that_cannot_be_merged():
    assert merge.read_settings(dict(r=3, fan_in_fan_out=False, lora_dropout=0.1)).r == 3
    for option in ("use_qalora", "lora_bias", "rank_pattern"):
        with pytest.raises(CheckpointError, match=f"{option} can't be merged"):
            merge.read_settings({"r": 3, option: True})
    for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq"):
        with pytest.raises(CheckpointError, match=init):
            merge.read_settings({"init_lora_weights": init})
