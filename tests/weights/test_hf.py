"""hf: opens in transformers' own class and comes back to the bit."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.weights.training import chat_inputs, logits
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert
from xtuner_plugins.hub.conversation import get_conv_template
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights import hf
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.model_view import open_config
from xtuner_plugins.weights.reading import CheckpointError, read_json

RMS_TOWER = dict(norm_type="rms_norm", qk_normalization=True, qkv_bias=False)


@torch.no_grad()
def hf_logits(directory, inputs):
    from transformers import InternVLForConditionalGeneration

    options = dict(torch_dtype=torch.float32, output_loading_info=True)
    model, info = InternVLForConditionalGeneration.from_pretrained(directory, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    pixels, ids, _ = inputs
    return model.eval()(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def assert_same_weights(directory, other):
    a, b = (load_file(each / "model.safetensors") for each in (directory, other))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_same_logits_and_back(toy_base, tmp_path):
    """With a tower of InternViT-300M's kind and of the 6B's."""
    large = build_base(*write_random_parts(tmp_path, vision_overrides=RMS_TOWER), tmp_path / "base", dtype="float32")
    for base, folder in ((toy_base, tmp_path / "300M"), (Path(large["out"]), tmp_path / "6B")):
        convert(base, folder / "hf", format="hf")
        ours, direct = load_model(base, dtype=None), load_model(folder / "hf", dtype=None)
        ours.img_context_token_id = load_tokenizer(base).convert_tokens_to_ids("<IMG_CONTEXT>")
        inputs = chat_inputs(ours)
        reference, theirs = logits(ours, inputs), hf_logits(folder / "hf", inputs)
        assert theirs.shape[-1] == reference.shape[-1] + 1  # the row of <video>
        assert (theirs[..., :-1] - reference).abs().max() <= 1e-5  # two implementations in fp32, 2+2 layers
        assert torch.equal(logits(direct, inputs)[..., :-1], reference)

        convert(folder / "hf", folder / "back", format="official")
        assert_same_weights(base, folder / "back")
        assert load_tokenizer(folder / "back").get_vocab() == load_tokenizer(base).get_vocab()
        old, new = (read_json(each / "config.json") for each in (base, folder / "back"))
        vision, llm = old.pop("vision_config"), old.pop("llm_config")
        del vision["use_flash_attn"]
        assert old.items() <= new.items() and vision.items() <= new["vision_config"].items()
        assert new["llm_config"].items() <= llm.items()

    # Some directories were saved under transformers' names in memory.
    memory = shutil.copytree(tmp_path / "300M" / "hf", tmp_path / "memory") / "model.safetensors"
    top = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    top |= {name: f"model.{name}" for name in ("vision_tower.", "multi_modal_projector.")}
    held = {}
    for name, tensor in load_file(memory).items():
        old = next(prefix for prefix in top if name.startswith(prefix))
        held[top[old] + name.removeprefix(old)] = tensor
    save_file(held, memory, metadata={"format": "pt"})
    for format, expected in (("official", toy_base), ("hf", tmp_path / "300M" / "hf")):
        convert(tmp_path / "memory", tmp_path / format, format=format)
        assert_same_weights(tmp_path / format, expected)


def test_processor_prompts_and_tiles(toy_base, tmp_path):
    from transformers import AutoProcessor

    convert(toy_base, tmp_path / "hf", format="hf")
    processor, image = AutoProcessor.from_pretrained(tmp_path / "hf"), Image.new("RGB", (336, 224), "red")
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


def test_what_it_cannot_say(toy_base, tmp_path):
    config, tokenizer = open_config(toy_base)[2], load_tokenizer(toy_base)
    vision = {**config["vision_config"], "qk_normalization": True, "layer_norm_eps": 1e-5}
    for change, words in (
        ({"ps_version": "v1"}, "ps_version='v1'"),
        ({"select_layer": -2}, "select_layer=-2"),
        ({"use_thumbnail": False}, "its processor always adds one"),
        ({"vision_config": vision}, "another eps"),
        ({"projector_type": "mlp"}, "another projector than"),
    ):
        with pytest.raises(CheckpointError, match=f"hf format can't express .*{words}"):
            hf.write_config({**config, **change}, tokenizer, 5)
    one_tile = {**config, "use_thumbnail": False, "max_dynamic_patch": 1}
    vision = {**vision, "qk_normalization": False, "model_type": "intern_vit_6b"}
    written = hf.write_config({**one_tile, "vision_config": vision}, tokenizer, 5)
    assert written["text_config"]["vocab_size"] == 5
    written["vision_config"]["image_size"] = [112, 224]
    with pytest.raises(CheckpointError, match=r"must be square, not \[112, 224\]"):
        hf.read_config(written, tmp_path)
