"""Assembly: nine tokens, mean rows, untied head, every file; and one clear line for every wrong part."""

import json
import shutil

import huggingface_hub
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.draft import hub_code
from xtuner_plugins.export.export import convert
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.hub.conversation import INTERNVL2_5_SYSTEM, INTERNVL2_SYSTEM
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json

HI = [{"role": "user", "content": "Hi"}]


def test_files_tokens_and_config(toy_parts, toy_base):
    files = "config.json generation_config.json preprocessor_config.json model.safetensors tokenizer.json vocab.json"
    files += " tokenizer_config.json special_tokens_map.json added_tokens.json merges.txt"
    assert {path.name for path in toy_base.iterdir()} == {*files.split(), *(path.name for path in hub_code())}
    tokenizer, config = load_tokenizer(toy_base), read_json(toy_base / "config.json")
    first = read_json(toy_parts[1] / "tokenizer.json")["added_tokens"][-1]["id"] + 1
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(first, first + 9))
    assert config["llm_config"]["vocab_size"] == first + 9 == len(tokenizer)
    assert tokenizer.encode("a<img>b") == [*tokenizer.encode("a"), first, *tokenizer.encode("b")]
    stops = read_json(toy_base / "generation_config.json")["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(stops) == ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
    assert config["llm_config"]["tie_word_embeddings"] is False and config["llm_config"]["use_cache"] is True
    fields = {"hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "num_key_value_heads", "pad_token_id"}
    assert fields < config["llm_config"].keys()


def test_rows(tmp_path):
    """Old rows as they were, new rows their mean (exact in the stored dtype), a tied head a copy, padding gone."""
    untied = {"tie_word_embeddings": False, "bos_token_id": 7}
    for name, fields in {"tied": {}, "padded": {"vocab_size": 4096}, "untied": untied}.items():
        parts, out = write_random_parts(tmp_path / name, llm_overrides=fields), tmp_path / name / "base"
        told = build_base(*parts, out, dtype="float32")
        own, config = read_json(parts[1] / "config.json"), read_json(out / "config.json")
        size = config["llm_config"]["vocab_size"] * config["llm_config"]["hidden_size"] / 1e6
        head = f"the format stores a head beside the tied embedding: {size:.1f} M parameters more"
        assert size > 0.05 and (head in told["notes"]) == (name != "untied")
        assert config["llm_config"]["bos_token_id"] == own["bos_token_id"]
        old, new = load_file(parts[1] / "model.safetensors"), load_file(out / "model.safetensors")
        assert sum(told["parts"].values()) == told["num_parameters"] == sum(tensor.numel() for tensor in new.values())
        assert told["parts"]["projector"] == sum(new[name].numel() for name in new if name.startswith("mlp1."))
        for matrix in ("model.embed_tokens.weight", "lm_head.weight"):
            before, after = old.get(matrix, old["model.embed_tokens.weight"]), new[f"language_model.{matrix}"]
            used = len(after) - 9
            assert len(after) == len(load_tokenizer(out)) and torch.equal(after[:used], before[:used].float())
            assert torch.equal(after[used:], before[:used].double().mean(0).bfloat16().float().expand(9, -1))


def changed(directory, to, **tensors):
    """A copy of a part with other tensors; None removes one."""
    shutil.copytree(directory, to)
    held = {**load_file(directory / "model.safetensors"), **tensors}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, to / "model.safetensors")
    return to


def test_wrong_parts_are_refused_and_leave_nothing(toy_parts, toy_base, tmp_path, monkeypatch, refused):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    vision, llm = toy_parts
    lacking = changed(vision, tmp_path / "lacking", **{"encoder.layers.1.ls2": None})
    rows = load_file(llm / "model.safetensors")["model.embed_tokens.weight"][:100].clone()
    other = changed(llm, tmp_path / "other", **{"model.embed_tokens.weight": rows})
    untold = shutil.copytree(llm, tmp_path / "untold", ignore=shutil.ignore_patterns("*token*", "vocab.json"))
    save_file({"mlp1.0.weight": torch.ones(3)}, tmp_path / "p.safetensors")
    short = tmp_path / "short"
    Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(short)
    write_json(short / "config.json", {**read_json(short / "config.json"), "num_hidden_layers": 2})
    odd, two = (shutil.copytree(vision, tmp_path / name) for name in ("odd", "two"))
    write_json(odd / "preprocessor_config.json", {"image_mean": [127] * 3, "image_std": [0.5] * 3})
    write_json(two / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 2})
    before = set(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    for tower, language, options, words in (
        (tmp_path / "nowhere", llm, {}, "vision tower: .*nowhere is no directory, nor a hub name like org/model"),
        (vision, "short/config.json", {}, "language model: short/config.json is no directory"),
        (vision, "some/model", {}, "language model: there is no directory some/model, .*no route to the hub"),
        (llm, vision, {}, "is not a vision encoder.*known are intern_vit_6b, clip_vision_model"),
        (vision, vision, {}, "not a language model that can be used"),
        (lacking, llm, {}, r"1 missing: vision_model\.encoder\.layers\.1\.ls2"),
        (short, llm, {}, r"the assembled model.* missing: vision_model\.encoder\.layers\.1\."),
        (vision, other, {}, "has 100 rows, fewer than"),
        (vision, untold, {}, "holds no tokenizer"),
        (vision, llm, {"template": "phi3-chat"}, r"ends answers with <\|end\|>.*its tokens fit --template .*Hermes-2"),
        (vision, llm, {"projector": tmp_path / "p.safetensors"}, "doesn't fit these parts"),
        (vision, llm, {"projector_type": "resampler"}, "projector_type 'resampler' is unknown"),
        *((vision, llm, {"max_tiles": count}, f"max_tiles = {count}") for count in (0, 129)),
        (vision, llm, {"select_layer": 1}, "select_layer = 1"),
        *((tower, llm, {}, "must be three numbers") for tower in (odd, two)),
    ):
        refused(words, build_base, tower, language, tmp_path / "out", **options, error=ValueError)
    refused("base exists already", build_base, vision, llm, toy_base)
    assert set(tmp_path.iterdir()) == before


def test_a_base_prompts_as_its_language_model_does(toy_parts, tmp_path):
    """By its own template and system message, unless told otherwise; and so do data, an export and its hf form."""
    llm = shutil.copytree(toy_parts[1], tmp_path / "llm")
    text = (llm / "tokenizer_config.json").read_text()
    for stock in (json.dumps(INTERNVL2_5_SYSTEM)[1:-1], INTERNVL2_5_SYSTEM):
        text = text.replace(stock, "You are Q.")
    (llm / "tokenizer_config.json").write_text(text)
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes."}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"conversations": turns}))
    for options, begins in (
        ({}, "<|im_start|>system\nYou are Q.<|im_end|>\n<|im_start|>user\nHi"),
        ({"system": "Be brief."}, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi"),
        ({"system": ""}, "<|im_start|>user\nHi"),
        ({"template": "Hermes-2"}, f"<|im_start|>system\n{INTERNVL2_SYSTEM}<|im_end|><|im_start|>user\nHi"),
    ):
        base, hf = tmp_path / f"base-{options}", tmp_path / f"hf-{options}"
        summary = build_base(toy_parts[0], llm, base, dtype="float32", **options)
        convert(base, hf, format="hf")
        prompt = "".join(text for _, text in load_model(base, dtype=torch.float32).prompt_parts("Hi"))
        for folder in (base, hf):
            rendered = load_tokenizer(folder).apply_chat_template(HI, tokenize=False, add_generation_prompt=True)
            assert rendered == prompt and prompt.startswith(begins)
        dataset = MultimodalDataset(base, [str(tmp_path / "data.jsonl")], max_length=512)
        assert load_tokenizer(base).decode(dataset[0]["input_ids"]).startswith(prompt)
        notes = "\n".join(summary["notes"])
        assert f"prompt with template {summary['template']}: " in notes
        assert ("chat template renders" in notes) == bool(options)
        assert ("the system message is this model's own" in notes) == ("template" not in options)
