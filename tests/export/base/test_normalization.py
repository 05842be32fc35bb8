"""Folding: the folded tower on ImageNet pixels says what the tower said on its own."""

import pytest
import torch
from safetensors.torch import load_file

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.base.normalization import fold
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.weights.loader import load_model

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def normalized(pixels, mean, std):
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


@pytest.mark.parametrize("mean, std", [CLIP, SIGLIP])
def test_same_features(toy_parts, tmp_path, mean, std):
    build_base(*toy_parts, tmp_path / "plain", dtype="float32")
    build_base(*toy_parts, tmp_path / "folded", dtype="float32", image_mean=mean, image_std=std)
    plain = load_model(tmp_path / "plain", dtype=None)
    folded = load_model(tmp_path / "folded", dtype=None)
    pixels = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        reference = plain.extract_feature(normalized(pixels, mean, std))
        gap = folded.extract_feature(normalized(pixels, IMAGENET_MEAN, IMAGENET_STD)) - reference
        unfolded = plain.extract_feature(normalized(pixels, IMAGENET_MEAN, IMAGENET_STD)) - reference
    # fp32 rounding of weights and of a sum over 588 products, through two layers
    assert gap.abs().max() <= 1e-5 * reference.abs().max() and unfolded.abs().max() > 1e-3


def test_imagenet_changes_nothing(toy_parts, tmp_path):
    build_base(*toy_parts, tmp_path / "a", dtype="float32")
    build_base(*toy_parts, tmp_path / "b", dtype="float32", image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("mean, std", [((0.5,), (0.5,)), ((0.5,) * 3, (0.0,) * 3), ((127.0,) * 3, (0.5,) * 3)])
def test_nonsense(mean, std):
    with pytest.raises(ValueError, match="must be three numbers"):
        fold({}, mean, std)


def test_half_given(toy_parts, tmp_path):
    with pytest.raises(ValueError, match="image_mean and image_std go together"):
        build_base(*toy_parts, tmp_path / "a", image_mean=CLIP[0])
