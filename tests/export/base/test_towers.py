"""Vision towers: read from every kind of directory, folded to ImageNet's pixels, cut after the layer that is used."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vision_towers import NORMALIZATION, write_tower
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.base.towers import read_vision
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.writer import write_json


def normalized(pixels, mean, std):
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


@torch.no_grad()
def test_an_intern_vit_is_cut_and_folded(toy_parts, tmp_path):
    mean, std = NORMALIZATION["clip"]
    for name, options in {
        "plain": {},
        "cut": {"select_layer": -2},
        "same": {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
        "folded": {"image_mean": mean, "image_std": std},
    }.items():
        build_base(*toy_parts, tmp_path / name, dtype="float32", **options)
    plain, cut, same, folded = (
        load_model(tmp_path / name, dtype=None).vision_model for name in ("plain", "cut", "same", "folded")
    )
    pixels = torch.rand(2, 3, 112, 112)
    given = normalized(pixels, IMAGENET_MEAN, IMAGENET_STD)
    reference = plain(pixel_values=given, output_hidden_states=True)
    assert torch.equal(cut(pixel_values=given).last_hidden_state, reference.hidden_states[-2])
    assert len(cut.encoder.layers) == 1 and torch.equal(same(given).last_hidden_state, reference.last_hidden_state)
    expected = plain(normalized(pixels, mean, std)).last_hidden_state
    # fp32 rounding of weights and of a sum over 588 products, through two layers
    assert (folded(given).last_hidden_state - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (reference.last_hidden_state - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kind", NORMALIZATION)
@torch.no_grad()
def test_clip_and_siglip(kind, toy_parts, tmp_path):
    """Pixels by ImageNet's numbers give the features that the tower has for pixels by its own.

    The tower alone, within a whole model, and as the newest transformers save it, give one base.
    """
    tower = write_tower(tmp_path / "tower", kind)
    write_tower(tmp_path / "whole", kind, whole=True)  # its text side and SigLIP's pooling head are left out
    write_tower(tmp_path / "flat", kind)
    held = load_file(tmp_path / "flat/model.safetensors")
    flat = {name.removeprefix("vision_model."): tensor for name, tensor in held.items()}
    save_file(flat, tmp_path / "flat/model.safetensors", metadata={"format": "pt"})
    write_json(tmp_path / "flat/preprocessor_config.json", {"image_mean": [0.1] * 3})  # half of it: the default
    files = []
    for form in ("tower", "whole", "flat"):
        notes = build_base(tmp_path / form, toy_parts[1], tmp_path / f"{form}-base", dtype="float32")["notes"]
        assert any("own model code only" in note and "--format llava" in note for note in notes)
        written = [tmp_path / f"{form}-base" / name for name in ("config.json", "model.safetensors")]
        files.append([path.read_bytes() for path in written])
    assert files[0] == files[1] == files[2]

    model, pixels = load_model(tmp_path / "tower-base", dtype=None), torch.rand(2, 3, 112, 112)
    hidden = tower(normalized(pixels, *NORMALIZATION[kind]), output_hidden_states=True).hidden_states[-2]
    expected = hidden[:, 1:] if kind == "clip" else hidden
    features = model.encode_tiles(normalized(pixels, IMAGENET_MEAN, IMAGENET_STD))
    assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()
    config = model.config
    assert (config.projector_type, config.downsample_ratio, config.select_layer) == ("mlp", 1.0, -2)
    assert (config.max_dynamic_patch, config.use_thumbnail, config.force_image_size) == (1, False, 112)
    assert config.vision_config.num_hidden_layers == 3  # whole; the layer is chosen by select_layer


def test_refusals(toy_parts, tmp_path):
    write_tower(tmp_path / "tower", "clip")
    write_tower(tmp_path / "empty", "clip")
    (tmp_path / "empty/model.safetensors").write_bytes((toy_parts[1] / "model.safetensors").read_bytes())
    for directory, layer, words in (
        (tmp_path / "tower", -4, "select_layer = -4 is outside -1 .. -3"),
        (toy_parts[0], -3, "select_layer = -3 is outside -1 .. -2"),
        (toy_parts[0], 0, "select_layer = 0 is outside -1 .. -2"),
        (tmp_path / "empty", None, "says clip_vision_model, but holds no such weights"),
    ):
        with pytest.raises(ValueError, match=words):
            read_vision(directory, select_layer=layer)
