"""hf: opens in transformers' own class and comes back to the bit."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.weights.training import SETTINGS, chat_inputs, logits, make_model, save_pth, with_context, write_config
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json

RMS_TOWER = dict(norm_type="rms_norm", qk_normalization=True, qkv_bias=False)


@pytest.fixture(scope="module", params=["300M style", "6B style"])
def base(request, tmp_path_factory, toy_base):
    if request.param == "300M style":
        return toy_base
    folder = tmp_path_factory.mktemp("rms")
    parts = write_random_parts(folder, vision_overrides=RMS_TOWER)
    build_base(*parts, folder / "base", dtype="float32")
    return folder / "base"


@torch.no_grad()
def hf_logits(directory, inputs):
    from transformers import InternVLForConditionalGeneration

    model, info = InternVLForConditionalGeneration.from_pretrained(
        directory, torch_dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    pixels, ids, _ = inputs
    return model.eval()(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_same_logits_and_back(base, tmp_path):
    convert(base, tmp_path / "hf", format="hf")
    ours = load_model(base, dtype=None)
    ours.img_context_token_id = load_tokenizer(base).convert_tokens_to_ids("<IMG_CONTEXT>")
    inputs = chat_inputs(ours)
    reference, theirs = logits(ours, inputs), hf_logits(tmp_path / "hf", inputs)
    rows = reference.shape[-1]
    assert theirs.shape[-1] == rows + 1  # the row of <video>
    # two implementations in fp32, 2+2 layers
    assert (theirs[..., :rows] - reference).abs().max() <= 1e-5
    direct = load_model(tmp_path / "hf", dtype=None)
    assert torch.equal(logits(with_context(direct, ours), inputs)[..., :rows], reference)

    convert(tmp_path / "hf", tmp_path / "back", format="official")
    a, b = load_file(base / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
    old, new = read_json(base / "config.json"), read_json(tmp_path / "back" / "config.json")
    assert {k: v for k, v in new["llm_config"].items() if v != old["llm_config"].get(k)} == {}
    assert {k for k in old["vision_config"] if old["vision_config"][k] != new["vision_config"].get(k)} <= {
        "use_flash_attn"
    }
    assert {k for k in old if old[k] != new.get(k)} <= {"vision_config"}
    assert load_tokenizer(tmp_path / "back").get_vocab() == load_tokenizer(base).get_vocab()


def test_processor_prompts_and_tiles(toy_base, tmp_path):
    from transformers import AutoProcessor

    from xtuner_plugins.hub.conversation import get_conv_template

    convert(toy_base, tmp_path / "hf", format="hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    image = Image.new("RGB", (336, 224), "red")
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    conversation = get_conv_template("internvl2_5")
    conversation.append_message(conversation.roles[0], "<IMG_CONTEXT>\nWhat?")
    conversation.append_message(conversation.roles[1], None)
    assert text == conversation.get_prompt()
    batch = processor(text=text, images=[image], return_tensors="pt")
    context = read_json(tmp_path / "hf" / "config.json")["image_token_id"]
    assert batch["pixel_values"].shape == (7, 3, 112, 112)  # 3 x 2 tiles and the thumbnail
    assert (batch["input_ids"] == context).sum() == 7 * 16
    hf_logits(tmp_path / "hf", (batch["pixel_values"], batch["input_ids"], None))


def test_trained_model(toy_base, tmp_path):
    trained = make_model(toy_base, **SETTINGS["both_loras"])
    config = write_config(tmp_path / "c.py", toy_base, **SETTINGS["both_loras"])
    export(config, save_pth(trained, tmp_path / "iter_1.pth"), tmp_path / "hf", format="hf")
    inputs = chat_inputs(trained.model)
    gap = hf_logits(tmp_path / "hf", inputs)[..., :-1] - logits(trained.model, inputs)
    assert gap.abs().max() <= 1e-5


def test_what_it_cannot_say(toy_base, tmp_path):
    shutil.copytree(toy_base, tmp_path / "v1")
    write_json(tmp_path / "v1" / "config.json", {**read_json(toy_base / "config.json"), "ps_version": "v1"})
    with pytest.raises(CheckpointError, match="can't express ps_version='v1'"):
        convert(tmp_path / "v1", tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()


def test_names_in_memory(toy_base, tmp_path):
    """Some -hf directories were saved under transformers' names in memory."""
    convert(toy_base, tmp_path / "hf", format="hf")
    held = load_file(tmp_path / "hf" / "model.safetensors")
    renamed = {}
    for name, tensor in held.items():
        name = name.replace("language_model.model.", "model.language_model.")
        name = name.replace("language_model.lm_head.", "lm_head.").replace("vision_tower.", "model.vision_tower.")
        renamed[name.replace("multi_modal_projector.", "model.multi_modal_projector.")] = tensor
    save_file(renamed, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "hf", tmp_path / "back", format="official")
    a, b = load_file(toy_base / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    convert(tmp_path / "hf", tmp_path / "same", format="hf")  # under the names that lie on disk
    same = load_file(tmp_path / "same" / "model.safetensors")
    assert same.keys() == held.keys() and all(torch.equal(same[k], held[k]) for k in held)


@pytest.mark.slow
def test_tool_converts(run_tool, toy_base, tmp_path):
    done = run_tool("tools/convert_to_official.py", "--from", toy_base, tmp_path / "hf", "--format", "hf")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "internvl"
