"""Merging one layer at a time gives what PEFT's whole-model merge gives, whatever the block size; token rows, too."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from xtuner_plugins.weights import merge
from xtuner_plugins.weights.lazy import MemoryTensor


def in_blocks(tensor, rows):
    """The whole, read so many rows at a time."""
    spans = [(start, min(start + rows, tensor.shape[0])) for start in range(0, tensor.shape[0], rows)]
    return torch.cat([tensor.rows(*span).read() for span in spans])


def test_merge_equals_peft():
    for options in (dict(), dict(use_rslora=True), dict(use_dora=True), dict(use_rslora=True, use_dora=True)):
        options = {"r": 4, "lora_alpha": 8, "target_modules": ["0", "1"], "init_lora_weights": False, **options}
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 7, bias=False))
        base = {name: MemoryTensor(tensor.clone()) for name, tensor in net.state_dict().items()}
        inject_adapter_in_model(LoraConfig(**options), net)
        parts = {"0": {}, "1": {}}
        for name, tensor in net.state_dict().items():
            if found := merge.split_key(name):
                parts[found[0]][found[1]] = MemoryTensor(tensor.clone())
        for layer, tensors in parts.items():
            weight, module = base[f"{layer}.weight"], net.get_submodule(layer)
            merged = merge.merged_weight(weight, tensors, merge.read_settings(options), layer)
            module.merge()
            for rows in (1, 3, 10):  # whatever is read at a time: one rounding of the product in another block shape
                torch.testing.assert_close(in_blocks(merged, rows), module.base_layer.weight.data, rtol=0, atol=1e-6)
            assert not torch.allclose(merged.read(), weight.read(), atol=1e-3)


def test_numbers_are_merged_in_float32_and_rows_replaced():
    ones, a, b = torch.ones(4, 3).bfloat16(), torch.ones(2, 3), torch.full((4, 2), 2.0**-10)
    parts = {merge.A: MemoryTensor(a), merge.B: MemoryTensor(b)}
    merged = merge.merged_weight(MemoryTensor(ones), parts, merge.Lora(r=2, lora_alpha=2), "proj").read()
    assert torch.equal(merged, torch.full((4, 3), 1 + 2.0**-9))  # bfloat16 would give 1

    matrix, trained = torch.arange(22.0).view(11, 2).bfloat16(), torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    result, expected = merge.with_rows(MemoryTensor(matrix), MemoryTensor(trained), [9, 0], "m"), matrix.float()
    expected[[9, 0]] = trained
    assert all(torch.equal(in_blocks(result, rows), expected) for rows in (1, 3, 11)) and matrix[9, 0] == 18


def test_what_is_not_merged(refused):
    a, b, size = merge.A, merge.B, merge.SIZE
    for says, (shapes, base) in {
        r"adapter is {.lora_A.weight.: \[2, 3\]}; the base float32 \[4, 3\]": ({a: (2, 3)}, (4, 3)),
        "checkpoint, settings and base don't fit": ({a: (2, 5), b: (4, 2)}, (4, 3)),
        r"\[3, 3\].*, r=2 and use_dora=False need": ({a: (3, 3), b: (4, 3)}, (4, 3)),
        "magnitude_vector.*, r=2 and use_dora=False need": ({a: (2, 3), b: (4, 2), size: (4,)}, (4, 3)),
        "proj is no linear layer": ({a: (2, 3, 2, 2), b: (4, 2, 1, 1)}, (4, 3, 2, 2)),
        "proj is no linear layer; .*trainable_token_indices": ({"lora_embedding_A": (2, 4)}, (4, 3)),
    }.items():
        parts = {name: MemoryTensor(torch.ones(shape)) for name, shape in shapes.items()}
        refused(says, merge.merged_weight, MemoryTensor(torch.ones(base)), parts, merge.Lora(r=2), "proj")
    rows, named = MemoryTensor(torch.ones(2, 3)), merge.Lora(trainable_token_indices={"embed_tokens": [1, 2]})
    assert merge.token_indices(named, "model.embed_tokens", "a.pth") == [1, 2]
    for indices, words in (
        ([1], r"m: the trained rows float32 \[2, 3\] aren't those of 1 different rows of float32 \[4, 3\]"),
        *((each, r"aren't those of [12] different rows of float32 \[4, 3\]") for each in ([1, 4], [-1, 1], [3, 3])),
    ):
        refused(words, merge.with_rows, MemoryTensor(torch.ones(4, 3)), rows, indices, "m")
    for config, layer in ((None, "model.embed_tokens"), (merge.Lora(), "model.embed_tokens"), (named, "lm_head")):
        refused(f"holds trained rows of {layer}, but the LoRA", merge.token_indices, config, layer, "a.pth")
    assert merge.read_settings(dict(r=3, fan_in_fan_out=False, lora_dropout=0.1)).r == 3
    usual = vars(LoraConfig())
    assert all(usual[name] == value for name, value in vars(merge.Lora()).items() if name != "options")
    table = [(name, True, f"{name} can't be merged") for name in ("use_qalora", "lora_bias", "rank_pattern")]
    table += [("init_lora_weights", name, name) for name in ("pissa", "pissa_niter_4", "olora", "corda", "loftq")]
    for name, value, words in table:
        refused(words, merge.read_settings, {"r": 3, name: value})
