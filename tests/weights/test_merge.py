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


CONFIGS = {
    "plain": dict(),
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "rslora and dora": dict(use_rslora=True, use_dora=True),
    "patterns": dict(rank_pattern={"proj": 2}, alpha_pattern={"head": 32}),
    "bias": dict(lora_bias=True, target_modules=["proj"]),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [1, 3, 10])
def test_merge_equals_peft(name, rows):
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["proj", "head"], **CONFIGS[name]})
    base, parts, net = adapted(config)
    assert parts.keys() == set(config.target_modules)
    for layer, tensors in parts.items():
        merged = merge.merged_weight(MemoryTensor(base[f"{layer}.weight"]), tensors, config, layer)
        total = merged.shape[0]
        blocks = [merged.rows(start, min(start + rows, total)).read() for start in range(0, total, rows)]
        merged = torch.cat(blocks)
        reference = net.get_submodule(layer).get_base_layer()
        # one rounding of the product in another block shape
        torch.testing.assert_close(merged, reference.weight.data, rtol=0, atol=1e-6)
        assert not torch.allclose(merged, base[f"{layer}.weight"], atol=1e-3)
        if name == "bias":
            merged_bias = merge.merged_bias(MemoryTensor(base["proj.bias"]), tensors, config, layer).read()
            torch.testing.assert_close(merged_bias, reference.bias.data, rtol=0, atol=1e-6)
            assert not torch.allclose(merged_bias, base["proj.bias"], atol=1e-3)


def test_bf16_base_is_merged_in_fp32():
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["proj"])
    base = torch.ones(4, 3, dtype=torch.bfloat16)
    parts = {
        "lora_A.weight": MemoryTensor(torch.ones(2, 3)),
        "lora_B.weight": MemoryTensor(torch.full((4, 2), 2.0**-10)),
    }
    merged = merge.merged_weight(MemoryTensor(base), parts, config, "proj").read()
    assert merged.dtype == torch.float32 and torch.equal(merged, torch.full((4, 3), 1 + 2.0**-9))  # bf16 would give 1


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.q_proj.lora_A.default.weight", ("a.q_proj", "lora_A.weight")),
        ("a.q_proj.lora_B.weight", ("a.q_proj", "lora_B.weight")),
        ("a.q_proj.lora_B.default.bias", ("a.q_proj", "lora_B.bias")),
        ("e.lora_embedding_A.default", ("e", "lora_embedding_A")),
        ("a.lora_magnitude_vector.default.weight", ("a", "lora_magnitude_vector.weight")),
        ("a.embed_tokens.token_adapter.trainable_tokens_delta.default", ("a.embed_tokens", merge.TOKEN_ROWS)),
        ("a.embed_tokens.token_adapter.trainable_tokens_delta", ("a.embed_tokens", merge.TOKEN_ROWS)),
        ("a.embed_tokens.token_adapter.base_layer.weight", None),
        ("a.q_proj.base_layer.weight", None),
        ("a.q_proj.weight", None),
    ],
)
def test_names(name, expected):
    assert merge.split_key(name) == expected


A, B, SIZE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"
REFUSED = {
    r"only lora_A\.weight": ({A: (2, 3)}, (4, 3)),
    "belongs to another base": ({A: (2, 5), B: (4, 2)}, (4, 3)),
    "has rank 3 and no magnitudes of DoRA, the config says r=2": ({A: (3, 3), B: (4, 3)}, (4, 3)),
    "rank 2 and magnitudes of DoRA, the config says r=2 and use_dora=False": (
        {A: (2, 3), B: (4, 2), SIZE: (4,)},
        (4, 3),
    ),
    "proj is no linear layer": ({A: (2, 3, 2, 2), B: (4, 2, 1, 1)}, (4, 3, 2, 2)),
    "proj is no linear layer, .*trainable_token_indices": ({"lora_embedding_A": (2, 4)}, (4, 3)),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_is_not_merged(says):
    shapes, base = REFUSED[says]
    parts = {name: MemoryTensor(torch.ones(shape)) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=says):
        merge.merged_weight(MemoryTensor(torch.ones(base)), parts, merge.Lora(r=2), "proj")


def test_an_option_that_would_need_another_sum():
    assert merge.read_settings(dict(r=3, fan_in_fan_out=False, lora_dropout=0.1)).r == 3
    with pytest.raises(CheckpointError, match="use_qalora can't be merged here"):
        merge.read_settings(dict(r=3, use_qalora=True))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_initializations_that_rewrite_the_base(init):
    config = LoraConfig(r=2, target_modules=["proj"])
    config.init_lora_weights = init
    with pytest.raises(CheckpointError, match=init):
        merge.check_mergeable(config, "iter_1.pth")
