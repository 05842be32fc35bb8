"""CLIP and SigLIP in the place of InternViT, and LLaVA's projector: the same numbers as transformers' own classes."""

import json

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from .cases import TOWERS, llava_config, make_model

CLASSES = {"clip": (CLIPVisionConfig, CLIPVisionModel), "siglip": (SiglipVisionConfig, SiglipVisionModel)}


@torch.no_grad()
def test_features_are_those_of_transformers(tmp_path):
    for tower, (config_class, model_class) in CLASSES.items():
        model = make_model(llava_config(tower))
        theirs = model_class(config_class(**TOWERS[tower])).eval()
        inner = getattr(theirs, "vision_model", theirs)  # transformers 5 has no class around it
        missing, unexpected = inner.load_state_dict(model.vision_model.vision_model.state_dict(), strict=False)
        assert not unexpected and not missing
        pixels = torch.randn(2, 3, 112, 112)
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
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["vision_config"]["model_type"] == TOWERS[tower]["model_type"]


def test_what_does_not_fit():
    for fields, message in (
        (dict(projector_type="resampler"), "projector_type = 'resampler'; legal are pixel_shuffle_mlp, mlp"),
        (dict(downsample_ratio=0.5), "downsample_ratio must be 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make_model(llava_config("clip", **fields))
    model = make_model(llava_config("siglip")).vision_model
    with pytest.raises(ValueError, match="select_layer = -5, but the encoder has 3 layers"):
        model.patch_features(torch.zeros(1, 3, 112, 112), -5)
    with pytest.raises(ValueError, match="tiles of .* for a vision tower of 112 x 112"):
        model.patch_features(torch.zeros(1, 3, 98, 98))


def test_gradients_reach_what_is_used():
    """The same ones where activations are recomputed."""
    for tower in TOWERS:
        model = make_model(llava_config(tower)).vision_model.train()
        pixels, found, runs = torch.randn(1, 3, 112, 112), [], []
        model.layers[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        for switch in (lambda: None, model.gradient_checkpointing_enable, model.gradient_checkpointing_disable):
            switch()
            model.zero_grad(set_to_none=True)
            model.patch_features(pixels, -2).square().sum().backward()
            found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert len(runs) == 4  # once more where they are recomputed
        for name, kept in found[0].items():
            assert torch.equal(kept, found[1][name]) and torch.equal(kept, found[2][name]), name
        unused = {id(p) for module in model.unused_modules(-2) for p in module.parameters()}
        names = {name for name, p in model.named_parameters() if id(p) in unused}
        assert names and names == {name for name, _ in model.named_parameters()} - found[0].keys()
