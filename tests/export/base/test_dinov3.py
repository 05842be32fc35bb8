"""DINOv3 as a tower of transformers: features equal to its own model's, at another tile size, also while it trains."""

import json

import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.base.towers import is_unused, read_vision
from xtuner_plugins.models.encoders import freeze_unused
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.weights.loader import load_model

SIZES = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=224)
# As the releases: small ones with four registers, the largest with gated layers.
KINDS = {"plain": dict(num_register_tokens=4), "gated": dict(use_gated_mlp=True, key_bias=True)}
PIXELS = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def write_dinov3(folder, kind):
    """Random and far from zero, saved by transformers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = DINOv3ViTConfig(**SIZES, **KINDS[kind], initializer_range=0.2, layerscale_value=0.7)
        model = DINOv3ViTModel(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_features_gradients_and_plan(kind, toy_parts, tmp_path):
    theirs = write_dinov3(tmp_path / "dinov3", kind)
    build_base(tmp_path / "dinov3", toy_parts[1], tmp_path / "base", dtype="float32", tile_size=96)
    config = json.loads((tmp_path / "base/config.json").read_text())
    model = load_model(tmp_path / "base", dtype=torch.float32).train()  # transformers would move its positions here
    tower, prefix = model.vision_model, 1 + KINDS[kind].get("num_register_tokens", 0)
    with torch.no_grad():
        hidden = theirs(PIXELS, output_hidden_states=True).hidden_states
        for select_layer in (-1, -2):
            assert torch.equal(tower.patch_features(PIXELS, select_layer), hidden[select_layer][:, prefix:])
    assert model.num_image_token == 9 and model.extract_feature(PIXELS).shape[:2] == (2, 9)

    shape = shape_of(config)
    assert shape.part("visual_encoder") == sum(p.numel() for p in tower.parameters())
    assert (shape.positions, shape.tokens_per_tile) == (36 + prefix, 9)

    freeze_unused(tower, -1)
    model.extract_feature(PIXELS).square().sum().backward()
    without = {name for name, p in tower.named_parameters() if p.requires_grad and p.grad is None}
    frozen = {name for name, p in tower.named_parameters() if not p.requires_grad}
    assert without == set() and frozen == {"vision_model.norm.weight", "vision_model.norm.bias"}
    assert frozen == {name for name, _ in tower.named_parameters() if is_unused(f"vision_model.{name}", config)}


def test_what_is_refused(tmp_path):
    write_dinov3(tmp_path / "dinov3", "plain")
    assert read_vision(tmp_path / "dinov3").config["image_size"] == 448
    with pytest.raises(ValueError, match="tile_size = 80 must be a multiple of 32"):
        read_vision(tmp_path / "dinov3", tile_size=80)
