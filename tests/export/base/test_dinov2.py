"""DINOv2 as an InternViT: features equal to transformers' own model, at its own and at another image size."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.base.towers import read_vision
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.weights.loader import load_model
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


@torch.no_grad()
def test_features_equal_those_of_transformers(toy_parts, tmp_path):
    """The hidden state before the final norm, with position embeddings that transformers resizes in its forward."""
    for size, kind, fields in ((56, Dinov2Model, {}), (84, Dinov2ForImageClassification, {"qkv_bias": False})):
        theirs = write_dinov2(tmp_path / f"dinov2-{size}", kind, **fields)
        build_base(tmp_path / f"dinov2-{size}", toy_parts[1], tmp_path / f"{size}", dtype="float32", tile_size=size)
        model = load_model(tmp_path / f"{size}", dtype=torch.float32)
        assert (model.config.vision_config.model_type, model.config.force_image_size) == ("intern_vit_6b", size)
        pixels = torch.randn(2, 3, size, size)
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-1]
        found = model.vision_model(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_positions_layers_and_normalization(tmp_path):
    folder = tmp_path / "dinov2"
    theirs = write_dinov2(folder, image_size=56)
    found = read_vision(folder, tile_size=56).tensors["vision_model.embeddings.position_embedding"]
    assert torch.equal(found.read(), theirs.embeddings.position_embeddings)
    part = read_vision(folder, select_layer=-2)
    assert part.config["num_hidden_layers"] == 2 and part.config["image_size"] == 448
    assert part.normalization == (IMAGENET_MEAN, IMAGENET_STD)
    write_json(folder / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    assert read_vision(folder).normalization == ([0.5] * 3, [0.5] * 3)


def test_what_cannot_be_an_intern_vit_is_refused(toy_parts, tmp_path):
    changes = {"odd": {}, "gated": {"use_swiglu_ffn": True}, "short": {"num_hidden_layers": 1}, "registers": {}}
    for name, fields in changes.items():
        write_dinov2(tmp_path / name, **fields)
    config = Dinov2Config(**SIZES).to_diff_dict()
    write_json(tmp_path / "short/config.json", {**config, "architectures": ["Dinov2Model"]})
    write_json(tmp_path / "registers/config.json", {**config, "model_type": "dinov2_with_registers"})
    for folder, size, words in (
        (tmp_path / "odd", 70, "tile_size = 70 must be a multiple of 28"),
        (toy_parts[0], 224, "tile_size = 224: this tower takes 112 pixels"),
        (tmp_path / "gated", None, "has SwiGLU layers"),
        (tmp_path / "short", None, "has no tensor 'encoder.layer.1"),
        (tmp_path / "registers", None, "known are"),
    ):
        with pytest.raises(ValueError, match=words):
            read_vision(folder, tile_size=size)
