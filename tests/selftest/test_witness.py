"""The gradient of a step is noted whole, before it is clipped."""

from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

from xtuner_plugins.selftest.witness import GradientWitness, gradient_file, gradient_gap


def test_the_sum_over_micro_batches_is_saved(tmp_path):
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    runner = SimpleNamespace(model=model)
    witness = GradientWitness(tmp_path / "seen")
    witness.before_train(runner)
    for value in (1.0, 2.0):
        model(torch.full((1, 2), value)).backward()
    model.weight.grad.mul_(0.1)  # clipping comes later
    witness.after_train_iter(runner, 0)
    saved = load_file(gradient_file(tmp_path / "seen", 0))
    assert saved.keys() == {"weight"} and torch.equal(saved["weight"], torch.full((1, 2), 3.0))


def test_gaps_are_relative_and_noise_is_small(tmp_path):
    large, noise = torch.full((4,), 10.0), torch.full((4,), 1e-9)
    for name, tensors in {
        "a": {"w": large, "k": noise},
        "b": {"w": large * (1 + 1e-4), "k": -noise},
        "c": {"w": large},
    }.items():
        save_file(tensors, tmp_path / name)
    assert gradient_gap(tmp_path / "a", tmp_path / "a") == 0
    assert 0.9e-4 < gradient_gap(tmp_path / "b", tmp_path / "a") < 1.1e-4
    assert gradient_gap(tmp_path / "c", tmp_path / "a") == float("inf")
