"""Projectors: drawn from a seed, or read from a file under anybody's names."""

import torch
from safetensors.torch import save_file

from xtuner_plugins.export.base.projectors import projector_tensors

PLAIN = {"vision_config": {"hidden_size": 6}, "llm_config": {"model_type": "qwen2", "hidden_size": 4}}
PLAIN |= {"downsample_ratio": 1.0, "projector_type": "mlp"}
SHUFFLED = {**PLAIN, "downsample_ratio": 0.5, "projector_type": "pixel_shuffle_mlp"}


def read(config, source=None, seed=0):
    return {name: tensor.read() for name, tensor in projector_tensors(config, source, seed).items()}


def test_fresh():
    """LayerNorm does nothing yet; linear layers are PyTorch's own default, uniform in 1 / sqrt(fan_in)."""
    held, again, other = (read(SHUFFLED, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(held[name], again[name]) for name in held)
    assert not torch.equal(held["mlp1.1.weight"], other["mlp1.1.weight"])
    assert held["mlp1.0.weight"].tolist() == [1.0] * 24 and held["mlp1.0.bias"].tolist() == [0.0] * 24
    for layer, shape in (("1", (4, 24)), ("3", (4, 4))):
        weight, bound = held[f"mlp1.{layer}.weight"], shape[1] ** -0.5
        assert weight.shape == shape and bound / 2 < weight.abs().max() <= bound
        assert 0 < held[f"mlp1.{layer}.bias"].abs().max() <= bound


def test_files(tmp_path, refused):
    """Under other names, in either kind of file; and what fits nothing is refused."""
    fresh = read(PLAIN, seed=3)
    assert list(fresh) == [f"mlp1.{n}.{p}" for n in "02" for p in ("weight", "bias")]
    for prefix, save in (("model.mlp1.", save_file), ("", torch.save)):
        save({name.replace("mlp1.", prefix): value for name, value in fresh.items()}, tmp_path / "a.safetensors")
        path = (tmp_path / "a.safetensors").rename(tmp_path / ("a.safetensors" if prefix else "a.bin"))
        found = read(PLAIN, path)
        assert list(found) == list(fresh) and all(torch.equal(found[name], fresh[name]) for name in fresh)
    save_file(read(SHUFFLED), tmp_path / "p.safetensors")
    save_file({**fresh, "mlp1.2.bias": torch.ones(5)}, tmp_path / "q.safetensors")
    for name, words in (
        ("nowhere", "checkpoint .*nowhere does not exist"),
        ("p.safetensors", r"doesn't fit these parts: mlp1\.0\.bias should be \(4,\), is \(24,\)"),
        ("q.safetensors", r"doesn't fit these parts: mlp1\.2\.bias should be \(4,\), is \(5,\)"),
    ):
        refused(words, projector_tensors, PLAIN, tmp_path / name, 0)
