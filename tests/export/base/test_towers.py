"""Vision towers: read from every kind of directory, cut after the layer that is used."""

import pytest
import torch
from safetensors.torch import load_file

from tests.vision_towers import NORMALIZATION, write_tower
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.base.towers import is_unused, read_vision
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.writer import write_json


def test_select_layer_cuts_the_tower(toy_parts, tmp_path):
    vision, llm = toy_parts
    build_base(vision, llm, tmp_path / "full", dtype="float32")
    build_base(vision, llm, tmp_path / "cut", dtype="float32", select_layer=-2)
    full = load_model(tmp_path / "full", dtype=torch.float32)
    cut = load_model(tmp_path / "cut", dtype=torch.float32)
    assert (len(full.vision_model.encoder.layers), len(cut.vision_model.encoder.layers)) == (2, 1)
    pixels = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        reference = full.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        assert torch.equal(cut.vision_model(pixel_values=pixels).last_hidden_state, reference)


def test_tower_of_an_official_directory(toy_parts, toy_base, tmp_path):
    build_base(toy_base, toy_parts[1], tmp_path / "again", dtype="float32")
    a, b = (load_file(d / "model.safetensors") for d in (toy_base, tmp_path / "again"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", NORMALIZATION)
def test_tower_of_a_whole_model(kind, tmp_path):
    """The text side and SigLIP's pooling head are left out; normalization comes from the preprocessor's config."""
    write_tower(tmp_path / "tower", kind)
    write_tower(tmp_path / "whole", kind, whole=True)
    tower, whole = (read_vision(tmp_path / name) for name in ("tower", "whole"))
    assert tower.tensors.keys() == whole.tensors.keys() and not any(".head." in name for name in whole.tensors)
    assert all(torch.equal(tower.tensors[name].read(), whole.tensors[name].read()) for name in whole.tensors)
    assert whole.config == tower.config and (whole.select_layer, whole.projector_type) == (-2, "mlp")
    assert tuple(map(tuple, whole.normalization)) == NORMALIZATION[kind]
    write_json(tmp_path / "tower" / "preprocessor_config.json", {"image_mean": [0.1] * 3})  # half of it: the default
    assert tuple(map(tuple, read_vision(tmp_path / "tower").normalization)) == NORMALIZATION[kind]


def test_refusals(toy_parts, tmp_path):
    write_tower(tmp_path / "tower", "clip")
    for directory, select_layer in ((tmp_path / "tower", -4), (toy_parts[0], -3), (toy_parts[0], 0)):
        with pytest.raises(ValueError, match=f"select_layer = {select_layer} is outside -1"):
            read_vision(directory, select_layer=select_layer)
    (tmp_path / "tower" / "model.safetensors").write_bytes((toy_parts[1] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="says clip_vision_model, but holds no such weights"):
        read_vision(tmp_path / "tower")


@pytest.mark.parametrize("select_layer, first_unused", [(-1, 3), (-2, 2), (1, 1)])
def test_unused(select_layer, first_unused):
    config = {
        "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 3},
        "select_layer": select_layer,
    }
    tower = "vision_model.vision_model."
    unused = [n for n in range(3) if is_unused(f"{tower}encoder.layers.{n}.layer_norm1.weight", config)]
    assert unused == list(range(first_unused, 3)) and is_unused(f"{tower}post_layernorm.weight", config)
    assert not is_unused(f"{tower}embeddings.class_embedding", config)
    assert not is_unused("language_model.model.layers.2.mlp.up_proj.weight", config)
    intern_vit = {**config, "vision_config": {"model_type": "intern_vit_6b", "num_hidden_layers": 3}}
    assert not is_unused("vision_model.encoder.layers.2.ls1", intern_vit)
