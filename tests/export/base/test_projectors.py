"""Projectors: drawn from a seed, or read from a file under anybody's names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.base.projectors import projector_shapes, projector_tensors
from xtuner_plugins.weights.reading import CheckpointError

PLAIN = {
    "vision_config": {"hidden_size": 6},
    "llm_config": {"hidden_size": 4},
    "downsample_ratio": 1.0,
    "projector_type": "mlp",
}
SHUFFLED = {**PLAIN, "downsample_ratio": 0.5, "projector_type": "pixel_shuffle_mlp"}


def test_sharded_part_and_projector_file(toy_parts, tmp_path):
    vision, llm = toy_parts
    shutil.copytree(vision, tmp_path / "vision")
    held = load_file(vision / "model.safetensors")
    (tmp_path / "vision" / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate([list(held)[::2], list(held)[1::2]], 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({k: held[k] for k in part}, tmp_path / "vision" / name)
        weight_map.update(dict.fromkeys(part, name))
    (tmp_path / "vision" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    build_base(tmp_path / "vision", llm, tmp_path / "one", seed=1)
    one = load_file(tmp_path / "one" / "model.safetensors")
    projector = {k.removeprefix("mlp1."): v for k, v in one.items() if k.startswith("mlp1.")}
    save_file(projector, tmp_path / "mlp1.safetensors")
    build_base(vision, llm, tmp_path / "two", projector=tmp_path / "mlp1.safetensors", seed=2)
    two = load_file(tmp_path / "two" / "model.safetensors")
    assert all(torch.equal(one[k], two[k]) for k in one)
    build_base(vision, llm, tmp_path / "again", seed=1)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == one.keys() and all(torch.equal(one[k], again[k]) for k in one)


def test_fresh():
    """LayerNorm does nothing yet; linear layers are PyTorch's own default, uniform in 1 / sqrt(fan_in)."""
    held, other = ({n: t.read() for n, t in projector_tensors(SHUFFLED, None, seed).items()} for seed in (0, 1))
    assert not torch.equal(held["mlp1.1.weight"], other["mlp1.1.weight"])
    assert held["mlp1.0.weight"].tolist() == [1.0] * 24 and held["mlp1.0.bias"].tolist() == [0.0] * 24
    for layer, shape in (("1", (4, 24)), ("3", (4, 4))):
        weight, bound = held[f"mlp1.{layer}.weight"], shape[1] ** -0.5
        assert weight.shape == shape and bound / 2 < weight.abs().max() <= bound
        assert 0 < held[f"mlp1.{layer}.bias"].abs().max() <= bound
    assert list(projector_shapes(PLAIN)) == [f"mlp1.{n}.{p}" for n in "02" for p in ("weight", "bias")]


def test_file_under_other_names(tmp_path):
    fresh = {name: tensor.read() for name, tensor in projector_tensors(PLAIN, None, 3).items()}
    for first, second in (
        ("model.mlp1.0.", "model.mlp1.2."),
        ("0.", "2."),
        ("mm_projector.0.", "mm_projector.2."),
        ("model.mm_projector.0.", "model.mm_projector.2."),
        ("projector.model.0.", "projector.model.2."),
        ("multi_modal_projector.linear_1.", "multi_modal_projector.linear_2."),
    ):
        renamed = {name.replace("mlp1.0.", first).replace("mlp1.2.", second): value for name, value in fresh.items()}
        save_file(renamed, tmp_path / "a.safetensors"), torch.save(renamed, tmp_path / "a.bin")
        for path in (tmp_path / "a.safetensors", tmp_path / "a.bin"):
            read = projector_tensors(PLAIN, path, 0)
            assert list(read) == list(fresh) and all(torch.equal(read[name].read(), fresh[name]) for name in fresh)


def test_refusals(tmp_path):
    with pytest.raises(CheckpointError, match="projector file .*nowhere does not exist"):
        projector_tensors(PLAIN, tmp_path / "nowhere", 0)
    held = {name: tensor.read() for name, tensor in projector_tensors(SHUFFLED, None, 0).items()}
    save_file(held, tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match=r"mlp1\.0\.bias should be \[4\], is \[24\]|mlp1\.1\.bias should be"):
        projector_tensors(PLAIN, tmp_path / "p.safetensors", 0)
