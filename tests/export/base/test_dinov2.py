"""DINOv2 as an InternViT: features equal to transformers' own model, at its own and at another image size."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.base.towers import read_vision
from xtuner_plugins.families import UnknownFamilyError
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.writer import write_json

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=70, patch_size=14, mlp_ratio=3)


def write_dinov2(folder, kind=Dinov2Model, **fields):
    """A random model whose parameters all differ from what they begin with; returns its `Dinov2Model`."""
    torch.manual_seed(0)
    model = kind(Dinov2Config(**SIZES | fields)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return getattr(model, "dinov2", model)


@pytest.mark.parametrize("size, qkv_bias, kind", [(56, True, Dinov2Model), (84, False, Dinov2ForImageClassification)])
def test_features_equal_those_of_transformers(toy_parts, tmp_path, size, qkv_bias, kind):
    """The hidden state before the final norm, with position embeddings that transformers resizes in its forward."""
    theirs = write_dinov2(tmp_path / "dinov2", kind, qkv_bias=qkv_bias)
    build_base(tmp_path / "dinov2", toy_parts[1], tmp_path / "base", dtype="float32", tile_size=size)
    model = load_model(tmp_path / "base", dtype=torch.float32)
    assert (model.config.vision_config.model_type, model.config.force_image_size) == ("intern_vit_6b", size)
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-1]
        found = model.vision_model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_its_own_size_keeps_position_embeddings(tmp_path):
    theirs = write_dinov2(tmp_path / "dinov2", image_size=56)
    found = read_vision(tmp_path / "dinov2", tile_size=56).tensors["vision_model.embeddings.position_embedding"]
    assert torch.equal(found.read(), theirs.embeddings.position_embeddings)


def test_layers_and_normalization_as_of_other_towers(tmp_path):
    write_dinov2(tmp_path / "dinov2")
    part = read_vision(tmp_path / "dinov2", select_layer=-2)
    assert part.config["num_hidden_layers"] == 2 and part.config["image_size"] == 448
    assert part.normalization == (IMAGENET_MEAN, IMAGENET_STD)
    write_json(tmp_path / "dinov2/preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    assert read_vision(tmp_path / "dinov2").normalization == ([0.5] * 3, [0.5] * 3)


def test_what_cannot_be_an_intern_vit_is_refused(toy_parts, tmp_path):
    write_dinov2(tmp_path / "odd")
    with pytest.raises(ValueError, match="tile_size = 70 must be a multiple of 28"):
        read_vision(tmp_path / "odd", tile_size=70)
    with pytest.raises(ValueError, match="tile_size = 224: this tower takes 112 pixels"):
        read_vision(toy_parts[0], tile_size=224)
    write_dinov2(tmp_path / "gated", use_swiglu_ffn=True)
    with pytest.raises(CheckpointError, match="has SwiGLU layers"):
        read_vision(tmp_path / "gated")
    write_dinov2(tmp_path / "short", num_hidden_layers=1)
    config = Dinov2Config(**SIZES).to_diff_dict()
    write_json(tmp_path / "short/config.json", {**config, "architectures": ["Dinov2Model"]})
    with pytest.raises(CheckpointError, match="has no tensor 'encoder.layer.1"):
        read_vision(tmp_path / "short")
    write_json(tmp_path / "odd/config.json", {**config, "model_type": "dinov2_with_registers"})
    with pytest.raises(UnknownFamilyError, match="known are"):
        read_vision(tmp_path / "odd")
