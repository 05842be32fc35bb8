"""CLIP, SigLIP and DINOv3 in the place of InternViT, and LLaVA's projector: as transformers' own classes compute."""

import re

import pytest
import torch
from transformers import CLIPVisionModel, DINOv3ViTModel, SiglipVisionModel

from .cases import SIZES, make_config, make_model, make_pixels

# Class of transformers, own fields of its config, and tokens before those of patches
TOWERS = {
    "clip": (CLIPVisionModel, {}, 1),
    "siglip": (SiglipVisionModel, {"vision_use_head": False}, 0),
    "dinov3": (DINOv3ViTModel, {"num_register_tokens": 4}, 5),
}


def llava_model(tower, **fields):
    """A model of LLaVA's kind: CLIP or SigLIP, and the plain projector."""
    plain = dict(select_layer=-2, projector_type="mlp", downsample_ratio=1.0, max_dynamic_patch=1, use_thumbnail=False)
    model_class, own, _ = TOWERS[tower]
    vision = {"model_type": model_class.config_class.model_type, **SIZES, **own}
    return make_model(make_config(vision, **{**plain, **fields}))


@torch.no_grad()
def test_features_are_those_of_transformers(tmp_path):
    for tower, (model_class, _, before) in TOWERS.items():
        model, pixels = llava_model(tower), make_pixels()
        config, own = model.config.vision_config, model.vision_model.vision_model
        theirs = model_class(config).eval()
        inner = getattr(theirs, "vision_model", theirs)  # transformers 5 has no class around it
        held = dict(own.named_parameters())
        for name, parameter in inner.named_parameters():  # DINOv3's blocks have other names, and it a mask token
            parameter.copy_(held.get(re.sub(r"^(model\.)?layer\.", "encoder.layers.", name), parameter))
        hidden = theirs(pixels, output_hidden_states=True).hidden_states
        # Newer releases leave buffers that aren't stored undefined after loading: they don't matter.
        for module in own.modules():
            module._buffers.update(dict.fromkeys(module._buffers))
        for select_layer in (-1, -2, 0, 3):
            # the same modules in the same order
            found = model.vision_model.patch_features(pixels, select_layer)
            assert torch.equal(found, hidden[select_layer][:, before:])
        features, (first, _, last) = model.vision_model(pixels, -2), model.mlp1
        assert model.num_image_token == 64 and features.shape == (2, 64, 48)
        by_hand = torch.nn.functional.gelu(features @ first.weight.T + first.bias) @ last.weight.T + last.bias
        assert (model.project(features) - by_hand).abs().max() < 1e-5  # two sums of 48 and 32 products in fp32
        model.config.save_pretrained(tmp_path)
        again = type(model.config).from_pretrained(tmp_path)
        assert again.projector_type == "mlp" and type(again.vision_config) is type(config)


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
    """Blocks run once more where activations are recomputed, also if nothing before them needs a gradient."""
    for tower in TOWERS:
        model, runs = llava_model(tower).vision_model.train(), []
        embeddings = model.vision_model.embeddings.requires_grad_(False)
        model.layers[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        for switch in (lambda: None, model.gradient_checkpointing_enable):
            switch()
            model.patch_features(make_pixels(1), -2).square().sum().backward()
        unused = {id(p) for module in (embeddings, *model.unused_modules(-2)) for p in module.parameters()}
        assert len(runs) == 3 and unused
        assert all((p.grad is None) == (id(p) in unused) for p in model.parameters())
