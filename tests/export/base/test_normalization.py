"""Folding: the folded tower on ImageNet pixels says what the tower said on its own."""

import pytest
import torch

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.base.normalization import fold
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.weights.loader import load_model

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def normalized(pixels, mean, std):
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def test_same_features(toy_parts, tmp_path):
    plain, pixels = tmp_path / "plain", torch.rand(2, 3, 112, 112)
    build_base(*toy_parts, plain, dtype="float32")
    for name, (mean, std) in {"clip": CLIP, "siglip": SIGLIP, "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}.items():
        build_base(*toy_parts, tmp_path / name, dtype="float32", image_mean=mean, image_std=std)
        models = [load_model(path, dtype=None) for path in (plain, tmp_path / name)]
        with torch.no_grad():
            reference = models[0].extract_feature(normalized(pixels, mean, std))
            found = [each.extract_feature(normalized(pixels, IMAGENET_MEAN, IMAGENET_STD)) for each in models]
        if name == "imagenet":  # which changes nothing
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], reference)
            continue
        # fp32 rounding of weights and of a sum over 588 products, through two layers
        assert (found[1] - reference).abs().max() <= 1e-5 * reference.abs().max()
        assert (found[0] - reference).abs().max() > 1e-3


def test_nonsense(toy_parts, tmp_path):
    for mean, std in (((0.5,), (0.5,)), ((0.5,) * 3, (0.0,) * 3), ((127.0,) * 3, (0.5,) * 3)):
        with pytest.raises(ValueError, match="must be three numbers"):
            fold({}, mean, std)
    with pytest.raises(ValueError, match="image_mean and image_std go together"):
        build_base(*toy_parts, tmp_path / "a", image_mean=CLIP[0])
