"""CLIP and SigLIP in the place of InternViT, and LLaVA's projector: the same numbers as transformers' own classes."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from .cases import SIZES, make_config, make_model, make_pixels

TOWERS = {
    "clip": (CLIPVisionConfig, CLIPVisionModel, {"model_type": "clip_vision_model", **SIZES}),
    "siglip": (SiglipVisionConfig, SiglipVisionModel, {"model_type": "siglip_vision_model", **SIZES}),
}
TOWERS["siglip"][2]["vision_use_head"] = False


def llava_model(tower, **fields):
    """A model of LLaVA's kind: CLIP or SigLIP, and the plain projector."""
    plain = dict(select_layer=-2, projector_type="mlp", downsample_ratio=1.0, max_dynamic_patch=1, use_thumbnail=False)
    return make_model(make_config(TOWERS[tower][2], **{**plain, **fields}))


@torch.no_grad()
def test_features_are_those_of_transformers(tmp_path):
    for tower, (config_class, model_class, fields) in TOWERS.items():
        model, pixels = llava_model(tower), make_pixels()
        theirs = model_class(config_class(**fields)).eval()
        inner = getattr(theirs, "vision_model", theirs)  # transformers 5 has no class around it
        inner.load_state_dict(model.vision_model.vision_model.state_dict())
        hidden = theirs(pixels, output_hidden_states=True).hidden_states
        # Newer releases leave buffers that aren't stored undefined after loading: they don't matter.
        model.vision_model.vision_model.embeddings.position_ids = torch.full((1, 65), 7)
        for select_layer in (-1, -2, 0, 3):
            expected = hidden[select_layer][:, 1:] if tower == "clip" else hidden[select_layer]
            # the same modules in the same order
            assert torch.equal(model.vision_model.patch_features(pixels, select_layer), expected)
        features, (first, _, last) = model.vision_model(pixels, -2), model.mlp1
        assert model.num_image_token == 64 and features.shape == (2, 64, 48)
        by_hand = torch.nn.functional.gelu(features @ first.weight.T + first.bias) @ last.weight.T + last.bias
        assert (model.project(features) - by_hand).abs().max() < 1e-5  # two sums of 48 and 32 products in fp32
        model.config.save_pretrained(tmp_path)
        again = type(model.config).from_pretrained(tmp_path)
        assert again.projector_type == "mlp" and type(again.vision_config) is config_class


def test_what_does_not_fit():
    tower = llava_model("siglip").vision_model
    for call, message in (
        (lambda: llava_model("clip", projector_type="resampler"), "'resampler'; legal are pixel_shuffle_mlp, mlp"),
        (lambda: llava_model("clip", downsample_ratio=0.5), "downsample_ratio must be 1"),
        (lambda: tower.patch_features(make_pixels(side=98)), "tiles of .* for a vision tower of 112 x 112"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_gradients_reach_what_is_used():
    """Blocks run once more where activations are recomputed."""
    for tower in TOWERS:
        model, runs = llava_model(tower).vision_model.train(), []
        model.layers[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        for switch in (lambda: None, model.gradient_checkpointing_enable):
            switch()
            model.patch_features(make_pixels(1), -2).square().sum().backward()
        unused = {id(p) for module in model.unused_modules(-2) for p in module.parameters()}
        assert len(runs) == 3 and unused
        assert all((p.grad is None) == (id(p) in unused) for p in model.parameters())
