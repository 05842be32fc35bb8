"""Formats: tables of names are bijections, and all come back from hf to the bit."""

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, InternVLForConditionalGeneration

from tests.toy_bases import LARGE, as_internlm2
from tests.weights.language_models import QWEN, write_internlm2, write_llm
from tests.weights.training import LORA, chat_inputs, logits, make_model, save_pth
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights import hf, languages, official
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.model_view import open_config
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json

INTERNLM2 = languages.internlm2_keys(dict(num_attention_heads=4, num_key_value_heads=2))
QWEN2 = languages.qwen_keys({})
WQKV = "model.layers.1.attention.wqkv.weight"


def tensors(*names, shape=(24, 1)):
    return {name: MemoryTensor(torch.ones(shape)) for name in names}


def test_the_groups_of_internlm2():
    fused = torch.randn(64, 32)
    llama = INTERNLM2.to_ours({WQKV: MemoryTensor(fused)})
    heads = fused.view(2, 4, 8, 32)  # [kv heads, 2 q + k + v, dim, D]
    for part, expected in (("q", heads[:, :2]), ("k", heads[:, 2]), ("v", heads[:, 3])):
        assert torch.equal(llama[f"model.layers.1.self_attn.{part}_proj.weight"].read(), expected.reshape(-1, 32))
    assert torch.equal(INTERNLM2.to_theirs(llama)[WQKV].read(), fused)


def test_qwen_as_qwen2():
    """Its w2 is the gate; its config counts both halves of the MLP, and stores no rope_theta but a base."""
    gate = {"transformer.h.0.mlp.w2.weight": MemoryTensor(torch.ones(1))}
    assert list(QWEN2.to_ours(gate)) == ["model.layers.0.mlp.gate_proj.weight"]
    expected = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_act="silu", vocab_size=9)
    expected |= dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    expected |= dict(num_key_value_heads=4, rms_norm_eps=1e-6, rope_theta=10000.0, max_position_embeddings=512)
    expected |= dict(tie_word_embeddings=False, use_sliding_window=False, initializer_range=0.02)
    assert languages.qwen_config({**QWEN, "vocab_size": 9}) == expected


def test_names_in_memory():
    """Some directories of transformers were saved under them."""
    names = "language_model.lm_head.x", "language_model.model.x", "vision_tower.x", "multi_modal_projector.x"
    held = "lm_head.x", "model.language_model.x", "model.vision_tower.x", "model.multi_modal_projector.x"
    assert tuple(map(hf.KEYS.listed, (*held, *names))) == (*names, *names)


def test_uncovered_and_incomplete(refused):
    q, k, v = (f"vision_tower.encoder.layer.0.attention.{n}_proj.weight" for n in "qkv")
    pair, alike = tensors(q, k, shape=(2, 1)), "tensors that belong together"
    refused("odd is not a tensor of the official InternVL format", hf.KEYS.to_theirs, tensors("odd"))
    for held, words in (
        (tensors("odd"), "odd is not a tensor of the transformers InternVL format"),
        (tensors(q, v), r"qkv\.weight can't be put together: .*k_proj"),
        (pair | tensors(v, shape=(5, 1)), alike),
        (pair | tensors(v, shape=(2, 3)), alike),
        (pair | {v: MemoryTensor(torch.ones(2, 1).half())}, alike),
        (pair | tensors(v, shape=(3, 1)), "7 rows can't be cut"),
    ):
        refused(words, hf.KEYS.to_ours, held)
    refused("65 rows can't be cut in 2 groups of the shares", INTERNLM2.to_ours, tensors(WQKV, shape=(65, 1)))


@torch.no_grad()
def test_to_hf_and_back(toy_base, tmp_path):
    """With a tower of InternViT-300M's kind and of the 6B's, and by transformers' own class."""
    large = build_base(*write_random_parts(tmp_path, vision_overrides=LARGE), tmp_path / "base", dtype="float32")
    for base, folder in ((toy_base, tmp_path / "300M"), (Path(large["out"]), tmp_path / "6B")):
        convert(base, folder / "hf", format="hf")
        processor, image = AutoProcessor.from_pretrained(folder / "hf"), Image.new("RGB", (336, 224))
        batch = processor(text="<IMG_CONTEXT>", images=[image], return_tensors="pt")
        assert batch["pixel_values"].shape == (7, 3, 112, 112)  # 3 x 2 tiles and the thumbnail
        ours = load_model(base, dtype=None)
        ours.img_context_token_id = load_tokenizer(base).convert_tokens_to_ids("<IMG_CONTEXT>")
        assert (batch["input_ids"] == ours.img_context_token_id).sum() == 7 * 16
        pixels, ids, _ = inputs = chat_inputs(ours)
        options = dict(torch_dtype=torch.float32, output_loading_info=True)
        theirs, info = InternVLForConditionalGeneration.from_pretrained(folder / "hf", **options)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        found = theirs.eval()(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        gap = found[..., :-1] - logits(ours, inputs)  # the last is of <video>
        assert gap.abs().max() <= 1e-5  # two implementations in fp32, 2+2 layers
        written, pixels = (read_json(folder / "hf" / name) for name in ("config.json", "preprocessor_config.json"))
        assert written["vision_config"].items() >= {"image_size": [112, 112], "patch_size": [14, 14]}.items()
        assert written.items() >= {"tie_word_embeddings": False, "vision_feature_layer": -1}.items()
        assert pixels.items() >= {"crop_to_patches": False, "min_patches": 1, "max_patches": 12}.items()
        video = read_json(folder / "hf/video_preprocessor_config.json")
        assert video["video_processor_type"] == "InternVLVideoProcessor" and video["size"] == pixels["size"]
        convert(folder / "hf", folder / "back", format="official")
        a, b = (load_file(each / "model.safetensors") for each in (base, folder / "back"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
        assert load_tokenizer(folder / "back").get_vocab() == load_tokenizer(base).get_vocab()
        old, new = (read_json(each / "config.json") for each in (base, folder / "back"))
        vision, llm = old.pop("vision_config"), old.pop("llm_config")
        del vision["use_flash_attn"]
        assert old.items() <= new.items() and vision.items() <= new["vision_config"].items()
        assert new["llm_config"].items() <= llm.items()


def test_what_it_cannot_say(toy_base, tmp_path, refused):
    config, tokenizer = open_config(toy_base)[2], load_tokenizer(toy_base)
    others = {"ps_version": "v1", "select_layer": -2, "use_thumbnail": False, "projector_type": "mlp"}
    others["vision_config"] = {**config["vision_config"], "qk_normalization": True, "layer_norm_eps": 1e-5}
    words = "ps_version='v1'", "select_layer=-2", "always adds one", "another projector than", "another eps"
    for (key, value), said in zip(others.items(), words, strict=True):
        refused(f"hf format can't express .*{said}", hf.write_config, {**config, key: value}, tokenizer, 5)
    bare = {**config, "llm_config": {**config["llm_config"], "pad_token_id": None}}
    assert official.write_config(bare, tokenizer, 5)["llm_config"]["pad_token_id"] == tokenizer.pad_token_id
    one_tile = {**config, "use_thumbnail": False, "max_dynamic_patch": 1}
    written = hf.write_config(one_tile, tokenizer, 5)
    assert written["text_config"]["vocab_size"] == 5
    written["vision_config"]["image_size"] = [112, 224]
    refused(r"must be square, not \[112, 224\]", hf.read_config, written, tmp_path)


def test_a_published_directory_is_trained_and_stays_what_it_is(toy_parts, tmp_path, refused):
    """Without tokenizer.json and with its own code, as releases are; without that code it isn't written."""
    llm = write_llm("internlm2", tmp_path / "llm", toy_parts[1], own_vocabulary=True)
    build_base(toy_parts[0], llm, tmp_path / "llama", template="internlm2-chat", dtype="float32")
    base, out = as_internlm2(tmp_path / "llama", tmp_path / "base"), tmp_path / "out"
    for path in base.glob("*token*"):
        path.unlink()
    write_internlm2(base, image_tokens=ADDED_TOKENS, model=(llm / "tokenizer.model").read_bytes())
    prompt = "<|im_start|>user\n<img><IMG_CONTEXT></img>\n你好 2 cats<|im_end|><|im_start|>assistant\n"

    trained = make_model(base, llm_lora={**LORA, "target_modules": ["q_proj", "o_proj", "up_proj"]})
    checkpoint, inputs = save_pth(trained, tmp_path / "iter_1.pth"), chat_inputs(trained.model)
    export(None, checkpoint, out)
    old, new = (load_file(each / "model.safetensors") for each in (base, out))
    assert old.keys() == new.keys() and all(old[k].shape == new[k].shape for k in old)
    changed = {k.split("layers.0.")[1] for k in old if not torch.equal(old[k], new[k]) and "model.layers.0." in k}
    assert changed == {"attention.wqkv.weight", "attention.wo.weight", "feed_forward.w3.weight"}
    assert read_json(out / "config.json") == read_json(base / "config.json")
    for name in ("modeling_internlm2.py", "tokenizer.model"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    written = read_json(out / "tokenizer_config.json")
    assert written.pop("chat_template") and written == read_json(base / "tokenizer_config.json")
    export(None, checkpoint, tmp_path / "hf", format="hf")
    expected = logits(trained.model, inputs)
    for folder in (out, tmp_path / "hf"):
        found = logits(load_model(folder, dtype=None), inputs)[..., : expected.shape[-1]]  # hf has a row for <video>
        assert (found - expected).abs().max() <= 1e-5
    ids = [load_tokenizer(tmp_path / name)(prompt).input_ids for name in ("llama", "base", "hf")]
    assert ids[0] == ids[1] == ids[2] and ids[0][0] == 1 and trained.model.img_context_token_id in ids[0]

    fields = read_json(base / "config.json")
    write_json(base / "config.json", {k: v for k, v in fields.items() if k != "auto_map"})
    checkpoint = save_pth(trained, tmp_path / "iter_2.pth")
    for words in (r"without the code that runs it \(auto_map\)", r"\(modeling_internlm2.py\); download it"):
        refused(words, export, None, checkpoint, tmp_path / "none")
        (base / "modeling_internlm2.py").unlink(missing_ok=True)
    assert not (tmp_path / "none").exists()
