"""CLIP and SigLIP in the place of InternViT, and LLaVA's projector: the same numbers as transformers' own classes."""

import json

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from .cases import LLM, make_config, make_model, make_tokenizer, write_directory
from .probing import run_probe

SIZES = dict(
    hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=112, patch_size=14
)
TOWERS = {
    "clip": {"model_type": "clip_vision_model", **SIZES},
    "siglip": {"model_type": "siglip_vision_model", "vision_use_head": False, **SIZES},
}
CLASSES = {"clip": (CLIPVisionConfig, CLIPVisionModel), "siglip": (SiglipVisionConfig, SiglipVisionModel)}
MLP = dict(projector_type="mlp", downsample_ratio=1.0, max_dynamic_patch=1, use_thumbnail=False)


@pytest.fixture(params=["clip", "siglip"])
def tower(request):
    return request.param


def llava_type(tower, **fields):
    return make_config(TOWERS[tower], LLM, **{"select_layer": -2, **MLP, **fields})


@torch.no_grad()
def test_features_are_those_of_transformers(tower):
    model = make_model(llava_type(tower))
    config_class, model_class = CLASSES[tower]
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
        assert expected.shape == (2, 64, 48)
        # the same modules in the same order
        assert torch.equal(model.vision_model.patch_features(pixels, select_layer), expected)


@torch.no_grad()
def test_plain_projector(tower):
    model = make_model(llava_type(tower))
    assert model.num_image_token == 64
    assert [name for name, _ in model.mlp1.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    features = torch.randn(1, 64, 48)
    by_hand = torch.nn.functional.gelu(features @ model.mlp1[0].weight.T + model.mlp1[0].bias)
    by_hand = by_hand @ model.mlp1[2].weight.T + model.mlp1[2].bias
    assert (model.project(features) - by_hand).abs().max() < 1e-5  # two sums of 48 and 32 products in fp32


def test_config_comes_back(tower, tmp_path):
    config = llava_type(tower)
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert again.projector_type == "mlp" and type(again.vision_config) is CLASSES[tower][0]
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["vision_config"]["model_type"] == TOWERS[tower]["model_type"]
    assert written["projector_type"] == "mlp"


def test_what_does_not_fit(tower):
    for fields, message in (
        (dict(projector_type="resampler"), "projector_type = 'resampler'; legal are pixel_shuffle_mlp, mlp"),
        (dict(downsample_ratio=0.5), "downsample_ratio must be 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make_model(llava_type(tower, **fields))
    model = make_model(llava_type(tower)).vision_model
    with pytest.raises(ValueError, match="select_layer = -5, but the encoder has 3 layers"):
        model.patch_features(torch.zeros(1, 3, 112, 112), -5)
    with pytest.raises(ValueError, match="tiles of .* for a vision tower of 112 x 112"):
        model.patch_features(torch.zeros(1, 3, 98, 98))


def test_gradients_reach_what_is_used(tower):
    model = make_model(llava_type(tower)).vision_model.train()
    pixels = torch.randn(1, 3, 112, 112)

    def gradients():
        model.zero_grad(set_to_none=True)
        model.patch_features(pixels, -2).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    kept = gradients()
    model.gradient_checkpointing_enable()
    recomputed = gradients()
    assert kept.keys() == recomputed.keys() and all(torch.equal(kept[name], recomputed[name]) for name in kept)
    unused = {id(p) for module in model.unused_modules(-2) for p in module.parameters()}
    assert unused and {name for name, p in model.named_parameters() if id(p) in unused} == {
        name for name, p in model.named_parameters() if name not in kept
    }


@pytest.mark.release
@pytest.mark.xdist_group("releases of transformers")
@pytest.mark.parametrize("release", ["4.37.2", "4.44.2", "4.49.0", "5.0.0", ">=5,<6"])
def test_releases(tower, release, tmp_path):
    """Loading with remote code, chat, saving and reloading in other releases, with the same logits."""
    from .probing import compare_reports
    from .test_versions import REFERENCE, environment

    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    model = make_model(llava_type(tower, vocab_size=len(tokenizer)))
    directory = write_directory(tmp_path / "model", model, tmp_path / "tokenizer")
    reference = run_probe(environment(REFERENCE), directory, tmp_path / "reference")
    difference = compare_reports(run_probe(environment(release), directory, tmp_path / "probe"), reference)
    print(f"transformers {release}, {tower}: logits differ by {difference:.1e}")
