"""The pre-training of the toy parts: it learns, and what it writes is the layout of the releases."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2ForCausalLM

from xtuner_plugins.toy import pretrain
from xtuner_plugins.toy.models import VISION_CONFIG, random_tensors, shapes_of


def test_the_parts_have_the_layouts_of_the_releases_and_depend_on_the_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "VISION_BATCH", 4)
    monkeypatch.setattr(pretrain, "LLM_BATCH", 2)
    held = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        held.append(load_file(pretrain.pretrain_vision(tmp_path / name, steps=4, seed=seed) / "model.safetensors"))
    shapes = shapes_of({**VISION_CONFIG, **pretrain.VISION})
    assert {name: tuple(tensor.shape) for name, tensor in held[0].items()} == shapes
    same = [all(torch.equal(held[0][name], other[name]) for name in shapes) for other in held[1:]]
    assert same == [True, False]

    llm = pretrain.pretrain_llm(tmp_path / "llm", steps=8)
    model, info = Qwen2ForCausalLM.from_pretrained(llm, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    said = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [said[at][::2] for at in (0, 3)] == [
        ["[vision] step 4/4", "digits right 2.8%"],
        ["[llm] step 8/8", "digits right 3.1%"],
    ]
    losses = [float(line[1].removeprefix("loss ")) for line in said]
    assert losses == pytest.approx([4.377, 4.377, losses[2], 6.325], abs=2e-3) and losses[2] != losses[0]
    assert len(AutoTokenizer.from_pretrained(llm)) <= model.config.vocab_size


def test_random_weights_are_far_from_zero_and_gains_around_one():
    shapes = {"norm1.weight": (9999,), "ls1": (9999,), "norm1.bias": (9999,), "class_embedding": (1, 1, 9999)}
    found = random_tensors({**shapes, "fc1.weight": (99, 64)}, seed=0).values()
    means, stds = [each.mean().item() for each in found], [each.std().item() for each in found]
    assert means == pytest.approx([1, 1, 0, 0, 0], abs=0.02)  # four standard errors
    assert stds == pytest.approx([0.1, 0.1, 0.1, 0.5, 1 / 8], rel=0.04)
