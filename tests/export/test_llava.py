"""CLIP and SigLIP: assembled, trained, exported, and opened by transformers' own Llava class with the same logits."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import HANGS_AFTER
from tests.hub.test_versions import environment
from tests.vision_towers import NORMALIZATION, write_tower
from tests.weights.training import LORA, chat_inputs, load_trained, logits, make_model, save_pth, with_context
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert, export, prepare, write
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.inference.verify import verify
from xtuner_plugins.models.encoders import freeze_unused
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.reading import CheckpointError, read_json

PROBE = Path(__file__).with_name("llava_probe.py")
VISION_LORA = {**LORA, "target_modules": ["q_proj", "fc1"]}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def made(kind, toy_parts, tmp_path_factory):
    """(vision model of transformers, its directory, base assembled from it)."""
    folder = tmp_path_factory.mktemp(kind)
    tower = write_tower(folder / "tower", kind)
    summary = build_base(folder / "tower", toy_parts[1], folder / "base", dtype="float32")
    notes = " ".join(summary["notes"])
    assert "own model code only" in notes and "--format llava" in notes
    return tower, folder / "tower", folder / "base"


def normalized(pixels, mean, std):
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def open_base(base):
    model = load_model(base, dtype=None)
    model.img_context_token_id = load_tokenizer(base).convert_tokens_to_ids("<IMG_CONTEXT>")
    return model


@torch.no_grad()
def llava_logits(directory, inputs, context):
    """Of transformers' own class on the same tiles, its image token where ours stood."""
    from transformers import LlavaForConditionalGeneration

    model, info = LlavaForConditionalGeneration.from_pretrained(
        directory, torch_dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    pixels, ids, _ = inputs
    ids = torch.where(ids == context, model.config.image_token_index, ids)
    return model.eval()(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@torch.no_grad()
def test_base_sees_what_the_tower_saw(kind, made):
    """Pixels by ImageNet's numbers give the features that the tower has for pixels by its own."""
    tower, _, base = made
    model = open_base(base)
    pixels = torch.rand(2, 3, 112, 112)
    hidden = tower(normalized(pixels, *NORMALIZATION[kind]), output_hidden_states=True).hidden_states[-2]
    expected = hidden[:, 1:] if kind == "clip" else hidden
    features = model.encode_tiles(normalized(pixels, IMAGENET_MEAN, IMAGENET_STD))
    # fp32 rounding of folded weights and of sums over 588 products, through two layers
    assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()
    unfolded = model.encode_tiles(normalized(pixels, *NORMALIZATION[kind]))
    assert (unfolded - expected).abs().max() > 1e-3
    config = read_json(base / "config.json")
    assert (config["projector_type"], config["downsample_ratio"], config["select_layer"]) == ("mlp", 1.0, -2)
    assert (config["max_dynamic_patch"], config["use_thumbnail"], config["force_image_size"]) == (1, False, 112)
    assert config["vision_config"]["num_hidden_layers"] == 3  # whole; the layer is chosen by select_layer
    assert not any(".head." in name for name in load_file(base / "model.safetensors"))


def test_other_forms_give_the_same_base(kind, made, toy_parts, tmp_path):
    """The tower inside a whole model, and what the newest transformers saves: names without `vision_model.`."""
    for form in ("whole", "flat"):
        tower, base = tmp_path / f"{form}-tower", tmp_path / f"{form}-base"
        write_tower(tower, kind, whole=form == "whole")
        if form == "flat":
            held = load_file(tower / "model.safetensors")
            flat = {name.removeprefix("vision_model."): tensor for name, tensor in held.items()}
            save_file(flat, tower / "model.safetensors", metadata={"format": "pt"})
        build_base(tower, toy_parts[1], base, dtype="float32")
        a, b = (load_file(folder / "model.safetensors") for folder in (made[2], base))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        assert read_json(made[2] / "config.json") == read_json(base / "config.json")


def test_same_logits(kind, made, tmp_path):
    base = made[2]
    convert(base, tmp_path / "llava", format="llava")
    ours = open_base(base)
    inputs = chat_inputs(ours)
    reference = logits(ours, inputs)
    theirs = llava_logits(tmp_path / "llava", inputs, ours.img_context_token_id)
    assert theirs.shape[-1] == reference.shape[-1] + 1  # the row of <image>
    assert (theirs[..., :-1] - reference).abs().max() <= 1e-5  # two implementations in fp32

    config = read_json(tmp_path / "llava" / "config.json")
    assert config["vision_feature_select_strategy"] == {"clip": "default", "siglip": "full"}[kind]
    assert config["vision_feature_layer"] == -2 and config["image_seq_length"] == 64
    assert not list((tmp_path / "llava").glob("*.py"))
    with pytest.raises(CheckpointError, match="read by other programs only"):
        convert(tmp_path / "llava", tmp_path / "back", format="official")


@pytest.mark.release
@pytest.mark.xdist_group("releases of transformers")
@pytest.mark.parametrize("release", ["4.49.0", ">=5,<6"])
def test_releases(kind, made, tmp_path, release):
    """Transformers' own class in the first release that promises it and in those after it."""
    convert(made[2], tmp_path / "llava", format="llava")
    ours = open_base(made[2])
    pixels, ids, flags = chat_inputs(ours)
    reference = logits(ours, (pixels, ids, flags))
    image_token = read_json(tmp_path / "llava" / "config.json")["image_token_index"]
    ids = torch.where(ids == ours.img_context_token_id, image_token, ids)
    torch.save(dict(pixels=pixels, ids=ids, logits=reference), tmp_path / "reference.pt")
    command = [environment(release), PROBE, tmp_path / "llava", tmp_path / "reference.pt"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(c) for c in command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS_AFTER
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_processor_prompts_and_pixels(kind, made, tmp_path):
    """The processor's prompt and pixels are those of our chat."""
    from transformers import AutoProcessor

    from xtuner_plugins.datasets.base import tiling_of
    from xtuner_plugins.hub.conversation import get_conv_template
    from xtuner_plugins.inference.session import normalize

    base = made[2]
    convert(base, tmp_path / "llava", format="llava")
    processor = AutoProcessor.from_pretrained(tmp_path / "llava", use_fast=False)
    assert type(processor).__name__ == "LlavaProcessor"
    model = open_base(base)
    image = Image.effect_noise((150, 90), 80).convert("RGB")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    conversation = get_conv_template(model.template)
    assert conversation.roles[0] + "<img><image></img>\nWhat is it?" in text
    batch = processor(images=image, text=text, return_tensors="pt")

    tokenizer = load_tokenizer(base)
    ids = tokenizer(model.build_prompt("<image>\nWhat is it?", [1])).input_ids
    image_token = read_json(tmp_path / "llava" / "config.json")["image_token_index"]
    assert batch.input_ids[0].tolist() == [image_token if i == model.img_context_token_id else i for i in ids]
    pixels = normalize(tiling_of(model.config, {})(image))
    # rescaled and normalized in another order, in fp32; both resize with Pillow
    assert batch.pixel_values.shape == pixels.shape and (batch.pixel_values - pixels).abs().max() < 1e-5


def test_trained_model(made, tmp_path):
    full, loras = dict(freeze_llm=False, freeze_visual_encoder=False), dict(visual_encoder_lora=VISION_LORA)
    for name, settings in (("full", full), ("loras", dict(llm_lora=LORA, **loras))):
        model, folder = make_model(made[2], **settings), tmp_path / name
        folder.mkdir()
        checkpoint = save_pth(model, folder / "iter_1.pth")
        export(None, checkpoint, folder / "own")
        export(None, checkpoint, folder / "llava", format="llava")
        live = with_context(load_trained(None, checkpoint, dtype=torch.float32, merge_lora=False), model.model)
        inputs = chat_inputs(live)
        reference = logits(live, inputs)
        tolerance = 1e-5 * max(1, reference.abs().max())  # merged W + BA against Wx + BAx in fp32
        theirs = llava_logits(folder / "llava", inputs, live.img_context_token_id)[..., :-1]
        for found in (logits(model.model, inputs), logits(open_base(folder / "own"), inputs), theirs):
            assert (found - reference).abs().max() <= tolerance
        assert (logits(open_base(made[2]), inputs) - reference).abs().max() > 0.01  # training changed something


def test_a_checkpoint_without_the_unused_layers(made, tmp_path):
    """Layers after `select_layer` may be frozen in training; a used one that lacks is still an error."""
    model = make_model(made[2], freeze_visual_encoder=False)
    freeze_unused(model.model.vision_model, -2)
    assert sum(not p.requires_grad for p in model.model.vision_model.parameters()) == 18
    export(None, save_pth(model, tmp_path / "iter_1.pth"), tmp_path / "own")
    inputs = chat_inputs(model.model)
    assert torch.equal(logits(open_base(tmp_path / "own"), inputs), logits(model.model, inputs))
    model.model.vision_model.layers[1].requires_grad_(False)
    with pytest.raises(CheckpointError, match="lacks 16 of its tensors"):
        export(None, save_pth(model, tmp_path / "iter_2.pth"), tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("format", [None, "llava"])
def test_verified_in_a_clean_process(made, tmp_path, format):
    model = make_model(made[2], llm_lora=LORA, visual_encoder_lora=VISION_LORA)
    job = prepare(None, save_pth(model, tmp_path / "iter_1.pth"), format=format)
    write(job, tmp_path / "out")
    verify(job, tmp_path / "out")


def test_what_it_cannot_say(made, toy_base, toy_parts, tmp_path):
    build_base(made[1], toy_parts[1], tmp_path / "shuffled", dtype="float32", projector_type="pixel_shuffle_mlp")
    build_base(made[1], toy_parts[1], tmp_path / "tiled", dtype="float32", max_tiles=6)
    for base, format, words in (
        (toy_base, "llava", "the vision tower intern_vit_6b"),
        (tmp_path / "shuffled", "llava", "pixel shuffle and the projector's LayerNorm"),
        (tmp_path / "tiled", "llava", "up to 6 tiles per image"),
        (made[2], "hf", "CLIP, SigLIP or another projector"),
    ):
        with pytest.raises(CheckpointError, match=f"can't express {words}"):
            convert(base, tmp_path / "a", format=format)
    for options, words in (
        ({"select_layer": -4}, "select_layer = -4 is outside -1 .. -3"),
        ({"projector_type": "resampler"}, "projector_type 'resampler' is unknown"),
    ):
        with pytest.raises(ValueError, match=words):
            build_base(made[1], toy_parts[1], tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_projector_from_llava(made, toy_parts, tmp_path):
    """A projector in LLaVA's names is taken as it is."""
    convert(made[2], tmp_path / "llava", format="llava")
    held = load_file(tmp_path / "llava" / "model.safetensors")
    projector = {name: tensor + 1 for name, tensor in held.items() if name.startswith("multi_modal_projector.")}
    save_file(projector, tmp_path / "projector.safetensors")
    build_base(made[1], toy_parts[1], tmp_path / "b", dtype="float32", projector=tmp_path / "projector.safetensors")
    taken = load_file(tmp_path / "b" / "model.safetensors")
    assert torch.equal(taken["mlp1.2.bias"], projector["multi_modal_projector.linear_2.bias"])
