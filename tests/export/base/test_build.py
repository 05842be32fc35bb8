"""Assembly: nine tokens, mean rows, untied head, every file; and one clear line for every wrong part."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.weights.language_models import write_llm
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.draft import hub_code
from xtuner_plugins.export.export import convert
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.hub.conversation import INTERNVL2_5_SYSTEM, INTERNVL2_SYSTEM
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.reading import CheckpointError, read_json


def test_every_file(toy_base):
    names = {p.name for p in toy_base.iterdir()}
    expected = {"config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors"}
    expected |= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    assert expected | {"vocab.json", "merges.txt"} <= names
    assert {p.name: p.read_bytes() for p in hub_code()} == {p.name: p.read_bytes() for p in toy_base.glob("*.py")}
    assert not any(n.startswith("chat_template") or n.endswith(".partial") for n in names)


def test_tokens_follow_the_base(toy_parts, toy_base):
    _, llm = toy_parts
    first = read_json(llm / "tokenizer.json")["added_tokens"][-1]["id"] + 1
    tokenizer = load_tokenizer(toy_base)
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(first, first + 9))
    assert read_json(toy_base / "config.json")["llm_config"]["vocab_size"] == first + 9 == len(tokenizer)
    assert tokenizer.encode("a<img>b") == [*tokenizer.encode("a"), first, *tokenizer.encode("b")]
    merges = read_json(toy_base / "tokenizer.json")["model"]["merges"]
    assert merges and all(isinstance(m, str) for m in merges)


def test_rows(tmp_path):
    """Old rows as they were, new rows their mean (exact in the stored dtype), the head a copy, padding gone."""
    for vocab_size in (None, 4096):
        folder = tmp_path / str(vocab_size)
        vision, llm = write_random_parts(folder, llm_overrides={"vocab_size": vocab_size})
        notes = build_base(vision, llm, folder / "base", dtype="float32")["notes"]
        assert any("stores a head beside the tied embedding" in note for note in notes)
        old = load_file(llm / "model.safetensors")["model.embed_tokens.weight"].float()
        held = load_file(folder / "base" / "model.safetensors")
        embed = held["language_model.model.embed_tokens.weight"]
        num_old = embed.shape[0] - 9
        assert embed.shape[0] == len(load_tokenizer(folder / "base")) and (vocab_size is None or old.shape[0] == 4096)
        assert torch.equal(embed[:num_old], old[:num_old])
        mean = old[:num_old].double().mean(0).bfloat16().float()  # the part's own dtype is bf16
        assert torch.equal(embed[num_old:], mean.expand(9, -1))
        assert torch.equal(held["language_model.lm_head.weight"], embed)


def test_untied_head_gets_its_own_mean(tmp_path):
    vision, llm = write_random_parts(tmp_path, llm_overrides={"tie_word_embeddings": False})
    build_base(vision, llm, tmp_path / "base", dtype="bfloat16")
    head = load_file(llm / "model.safetensors")["lm_head.weight"]
    held = load_file(tmp_path / "base" / "model.safetensors")["language_model.lm_head.weight"]
    num_old = held.shape[0] - 9
    assert torch.equal(held[:num_old], head[:num_old])
    assert torch.equal(held[-1], head[:num_old].double().mean(0).bfloat16())


def test_config(toy_base):
    config = read_json(toy_base / "config.json")
    assert config["ps_version"] == "v2" and config["select_layer"] == -1 and "system_message" not in config
    assert config["tie_word_embeddings"] is config["llm_config"]["tie_word_embeddings"] is False
    assert config["hidden_size"] == config["llm_config"]["hidden_size"]
    assert config["force_image_size"] == config["vision_config"]["image_size"]
    for key in ("hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "num_key_value_heads", "pad_token_id"):
        assert key in config["llm_config"]
    tokenizer = load_tokenizer(toy_base)
    stops = read_json(toy_base / "generation_config.json")["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(stops) == ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]


def test_a_model_directory_gives_its_parts(toy_base, tmp_path):
    summary = build_base(toy_base, toy_base, tmp_path / "again", dtype="float32", projector=toy_base)
    a, b = (load_file(d / "model.safetensors") for d in (toy_base, tmp_path / "again"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert sum(summary["parts"].values()) == summary["num_parameters"] == sum(t.numel() for t in b.values())
    assert summary["parts"]["projector"] == sum(t.numel() for name, t in b.items() if name.startswith("mlp1."))


def changed(directory, to, **tensors):
    """A copy of a part with other tensors; None removes one."""
    shutil.copytree(directory, to)
    held = {**load_file(directory / "model.safetensors"), **tensors}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, to / "model.safetensors")
    return to


def test_wrong_parts_are_refused_and_leave_nothing(toy_parts, tmp_path):
    vision, llm = toy_parts
    lacking = changed(vision, tmp_path / "lacking", **{"encoder.layers.1.ls2": None})
    rows = load_file(llm / "model.safetensors")["model.embed_tokens.weight"][:100].clone()
    other = changed(llm, tmp_path / "other", **{"model.embed_tokens.weight": rows})
    untold = shutil.copytree(llm, tmp_path / "untold")
    for path in [*untold.glob("*token*"), untold / "vocab.json"]:
        path.unlink()
    save_file({"mlp1.0.weight": torch.ones(3)}, tmp_path / "p.safetensors")
    table = [
        (tmp_path / "nowhere", llm, {}, "vision tower: directory .*nowhere does not exist"),
        (llm, vision, {}, "is not a vision encoder.*known are intern_vit_6b, clip_vision_model"),
        (vision, vision, {}, "not a language model that can be used"),
        (lacking, llm, {}, r"1 missing: vision_model\.encoder\.layers\.1\.ls2"),
        (vision, other, {}, "has 100 rows, fewer than"),
        (vision, untold, {}, "holds no tokenizer"),
        (vision, llm, {"template": "phi3-chat"}, r"ends answers with <\|end\|>"),
        (vision, llm, {"template": "x"}, "unknown conversation template"),
        (vision, llm, {"projector": tmp_path / "p.safetensors"}, "doesn't fit these parts"),
        (vision, llm, {"dtype": "int8"}, "dtype 'int8'"),
        (vision, llm, {"max_tiles": 0}, "max_tiles = 0"),
        (vision, llm, {"select_layer": 1}, "select_layer = 1"),
    ]
    before = set(tmp_path.iterdir())
    for tower, language, options, words in table:
        with pytest.raises(ValueError, match=words):
            build_base(tower, language, tmp_path / "out", **options)
    assert set(tmp_path.iterdir()) == before


def test_a_stock_llama_3_is_told_its_template(toy_parts, tmp_path):
    """Its control tokens stand in for the toy's; with its template it is assembled and prompts as it was tuned."""
    names = {"<|im_start|>": "<|start_header_id|>", "<|im_end|>": "<|eot_id|>", "<|endoftext|>": "<|end_header_id|>"}
    shutil.copytree(toy_parts[1], tmp_path / "tokens")
    for path in (tmp_path / "tokens").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    llm = write_llm("llama", tmp_path / "llm", tmp_path / "tokens")
    with pytest.raises(CheckpointError, match=r"its tokens fit --template llama3-chat$"):
        build_base(toy_parts[0], llm, tmp_path / "base")
    done = build_base(toy_parts[0], llm, tmp_path / "base", template="llama3-chat")
    tokenizer = load_tokenizer(tmp_path / "base")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "A"}], tokenize=False)
    assert prompt.endswith("<|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|>")
    stops = read_json(tmp_path / "base" / "generation_config.json")["eos_token_id"]
    assert done["template"] == "llama3-chat" and stops[0] == tokenizer.convert_tokens_to_ids("<|eot_id|>")


def test_tool_refuses_in_one_line(toy_parts, toy_base, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import build_base_model
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    vision, llm = map(str, toy_parts)
    assert build_base_model.main(["--vision", vision, "--llm", llm, "--out", str(toy_base)]) == 2
    assert build_base_model.main(["--vision", vision, "--llm", "some/model", "--out", str(tmp_path / "x")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "exists already" in errors[0] and "there is no directory some/model" in errors[1]
    assert "no route to the hub" in errors[1] and list(tmp_path.iterdir()) == []


def prompts_of(directory, question="Hi"):
    """The first turn as our code, and as the tokenizer's chat template, prompts it."""
    model = load_model(directory, dtype=torch.float32)
    tokenizer = load_tokenizer(directory)
    messages = [{"role": "user", "content": question}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return model.build_prompt(question), rendered


@pytest.mark.parametrize(
    "options, begins",
    [
        ({}, "<|im_start|>system\nYou are Q.<|im_end|>\n<|im_start|>user\nHi"),
        ({"system": "Be brief."}, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi"),
        ({"system": ""}, "<|im_start|>user\nHi"),
        ({"template": "Hermes-2"}, f"<|im_start|>system\n{INTERNVL2_SYSTEM}<|im_end|><|im_start|>user\nHi"),
    ],
)
def test_a_base_prompts_as_its_language_model_does(toy_parts, tmp_path, options, begins):
    """By its own template and system message, unless told otherwise; and so do data, an export and its hf form."""
    vision, llm = toy_parts
    shutil.copytree(llm, tmp_path / "llm")
    own = (llm / "tokenizer_config.json").read_text().replace(json.dumps(INTERNVL2_5_SYSTEM)[1:-1], "You are Q.")
    own = own.replace(INTERNVL2_5_SYSTEM, "You are Q.")
    (tmp_path / "llm/tokenizer_config.json").write_text(own)
    summary = build_base(vision, tmp_path / "llm", tmp_path / "base", dtype="float32", **options)
    prompt, rendered = prompts_of(tmp_path / "base")
    assert prompt == rendered and prompt.startswith(begins)
    assert any(f"prompt with template {summary['template']}: " in note for note in summary["notes"])
    assert any("chat template renders" in note for note in summary["notes"]) == bool(options)
    assert any("the system message is this model's own" in note for note in summary["notes"]) == (
        "template" not in options
    )
    (tmp_path / "data.jsonl").write_text(
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes."}]}\n'
    )
    dataset = MultimodalDataset(tmp_path / "base", [str(tmp_path / "data.jsonl")], max_length=512)
    text = load_tokenizer(tmp_path / "base").decode(dataset[0]["input_ids"])
    assert text.startswith(prompt)
    convert(tmp_path / "base", tmp_path / "hf", format="hf")
    messages = [{"role": "user", "content": "Hi"}]
    hf = load_tokenizer(tmp_path / "hf").apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (
        hf == prompt and json.loads((tmp_path / "base/config.json").read_text()).get("system_message", "") is not None
    )
