"""CLIP and SigLIP: assembled, trained, exported, and opened by transformers' own Llava class with the same logits."""

import pytest
import torch

from tests.hub.test_versions import environment
from tests.vision_towers import write_tower
from tests.weights.training import LORA, chat_inputs, logits, make_model, save_pth
from xtuner_plugins.export import llava
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert, export, prepare, prepare_conversion, write
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.inference import verify as module
from xtuner_plugins.models.blocks import freeze_unused
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.model_view import open_config
from xtuner_plugins.weights.reading import read_json

ADAPTERS = dict(llm_lora=LORA, visual_encoder_lora={**LORA, "target_modules": ["q_proj", "fc1"]})
WHOLE = dict(freeze_llm=False, freeze_visual_encoder=False)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def base(request, toy_parts, tmp_path_factory):
    """A base with this tower in `tower` beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tower(folder / "tower", request.param)
    build_base(folder / "tower", toy_parts[1], folder / "base", dtype="float32")
    return folder / "base"


@pytest.mark.parametrize("settings", [ADAPTERS, WHOLE], ids=["adapters", "whole"])
def test_what_is_trained_is_what_both_forms_answer(base, settings, tmp_path):
    """The verification compares logits, prompts and tiles of our own code, and of Llava and its processor."""
    model = make_model(base, **settings)
    checkpoint = save_pth(model, tmp_path / "iter_1.pth")
    for format in (None, "llava"):
        job, out = prepare(None, checkpoint, format=format), tmp_path / str(format)
        write(job, out)
        module.verify(job, out)  # in a process of its own
    inputs = chat_inputs(model.model)
    expected = logits(model.model, inputs)
    ours, untrained = (logits(load_model(each, dtype=None), inputs) for each in (tmp_path / "None", base))
    # merged W + BA against Wx + BAx in fp32
    assert (ours - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    assert (untrained - expected).abs().max() > 0.01
    pixels = read_json(out / "preprocessor_config.json")
    assert (pixels["image_mean"], pixels["image_std"]) == (list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert not list(out.glob("*.py"))


@pytest.mark.release
@pytest.mark.xdist_group("releases of transformers")
@pytest.mark.parametrize("release", ["4.49.0", ">=5,<6"])
def test_releases(base, tmp_path, monkeypatch, release):
    """Transformers' own class in the first release that promises it and in those after it."""
    job = prepare_conversion(base, format="llava")
    write(job, tmp_path / "llava")
    monkeypatch.setattr(module.sys, "executable", str(environment(release)))
    module.verify(job, tmp_path / "llava")


def test_a_checkpoint_without_the_unused_layers(base, tmp_path, refused):
    """Layers after `select_layer` may be frozen in training; a used one that lacks is still an error."""
    model = make_model(base, freeze_visual_encoder=False)
    freeze_unused(model.model.vision_model, -2)
    assert sum(not p.requires_grad for p in model.model.vision_model.parameters()) == 18
    export(None, save_pth(model, tmp_path / "iter_1.pth"), tmp_path / "own")
    exported, inputs = load_model(tmp_path / "own", dtype=None), chat_inputs(model.model)
    assert torch.equal(logits(exported, inputs), logits(model.model, inputs))
    model.model.vision_model.layers[1].requires_grad_(False)
    refused("lacks 16 of its tensors", export, None, save_pth(model, tmp_path / "iter_2.pth"), tmp_path / "other")


def test_what_it_cannot_say(base, toy_base, tmp_path, refused):
    config = open_config(base)[2]
    for other, words in (
        (open_config(toy_base)[2], "can't express the vision tower intern_vit_6b"),
        ({**config, "projector_type": None}, "can't express pixel shuffle and the projector's LayerNorm"),
        ({**config, "max_dynamic_patch": 6}, "can't express up to 6 tiles per image"),
    ):
        refused(words, llava.write_config, other, None, 5)
    convert(base, tmp_path / "llava", format="llava")
    refused("a llava export was made from", convert, tmp_path / "llava", tmp_path / "out", format="official")
    refused("can't express CLIP, SigLIP or another projector", convert, base, tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()
