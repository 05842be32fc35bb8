"""Exports: exported equals trained, from every kind of checkpoint; bad input writes nothing."""

import hashlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights import training
from tests.weights.training import LORA, SETTINGS, chat_inputs, logits, make_model, save_pth
from xtuner_plugins.export.draft import hub_code, with_template
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.export.trained import attach_adapters, build_trained, lay_over, read_training_config
from xtuner_plugins.weights import writer
from xtuner_plugins.weights.loader import build, load_model, load_tokenizer
from xtuner_plugins.weights.manifest import FILE
from xtuner_plugins.weights.official import AUTO_MAP
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json

# fp32, 2+2 layers of width 64: the same sums in another order (W + BA beside Wx + BAx), observed below 2e-6.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def runs(toy_base, tmp_path_factory):
    """(checkpoint, live model) by the name of its settings."""
    folder = tmp_path_factory.mktemp("runs")
    models = {name: make_model(toy_base, **settings) for name, settings in SETTINGS.items()}
    return {name: (save_pth(model, folder / f"{name}.pth"), model) for name, model in models.items()}


def test_exported_equals_trained(runs, toy_base, tmp_path):
    """The verification shows that what wasn't trained are the base's bytes."""
    for name, merged in {"full": 0, "last_layer": 0, "lora": 6, "both_loras": 10}.items():
        checkpoint, trained = runs[name]
        assert export(None, checkpoint, tmp_path / name)["num_merged"] == merged
        inputs, plan = chat_inputs(trained.model), lay_over(None, checkpoint).settle()
        live = build(plan.view.config, plan.tensors(merged=False), "live", dtype=torch.float32)
        attach_adapters(live, plan)
        expected, exported = logits(trained.model, inputs), logits(load_model(tmp_path / name, dtype=None), inputs)
        assert torch.equal(logits(live.eval(), inputs), expected)
        assert (exported - expected).abs().max() <= TOLERANCE, name
        merged = build_trained(plan, dtype=None)
        assert torch.equal(logits(merged, inputs), exported) and len(merged.generation_config.eos_token_id) == 3
        assert read_json(tmp_path / name / "config.json") == read_json(toy_base / "config.json")


def test_manifest_shards_and_dtype(runs, toy_base, tmp_path, monkeypatch):
    """The manifest is of base, checkpoint and config, which may be read already, and of what was written."""
    checkpoint, config = runs["lora"][0], training.write_config(tmp_path / "c.py", toy_base, **SETTINGS["lora"])
    monkeypatch.setattr(writer, "SHARD_BYTES", 300_000)
    done = export(read_training_config(config), checkpoint, out := tmp_path / "out", dtype="bfloat16")
    manifest, fields = read_json(out / FILE), read_json(out / "config.json")
    for role, path in {"base": toy_base / "model.safetensors", "checkpoint": checkpoint, "config": config}.items():
        assert manifest[role]["sha256"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [manifest[name] for name in ("kind", "dtype", "format")] == ["mmengine", "bfloat16", "as the base"]
    assert len(manifest["merged"]) == 6 and manifest["config"]["path"] == str(config)
    # users edit the card
    assert manifest["files"].keys() == {path.name for path in out.iterdir()} - {"README.md", FILE}
    held = {name: tensor for path in out.glob("model-*.safetensors") for name, tensor in load_file(path).items()}
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    assert fields["torch_dtype"] == fields["llm_config"]["torch_dtype"] == "bfloat16"
    refused("out exists already", checkpoint, out)
    assert done["num_bytes"] == sum(tensor.nbytes for tensor in held.values()) and done["num_shards"] > 1


def refused(pattern, checkpoint, out, **options):
    """Nothing may be written, and the message names the thing."""
    before = set(out.parent.iterdir())
    with pytest.raises(CheckpointError, match=pattern):
        export(None, checkpoint, out, **options)
    assert set(out.parent.iterdir()) == before


def test_what_does_not_belong_together(runs, toy_base, tmp_path):
    up, bias = "model.language_model.model.layers.7.mlp.up_proj.weight", "model.mlp1.1.bias"
    for settings, held, change, pattern in (  # settings of the record, tensors, what is changed in them
        ({}, "projector", {up: torch.ones(2, 2)}, r"another model.*layers\.7\.mlp\.up_proj"),
        ({}, "projector", {bias: torch.ones(7)}, r"bias is float32 \[7\], the base has float32 \[64\]"),
        ({}, "projector", {bias: torch.ones(64).int()}, r"bias is int32 \[64\]"),
        ({}, "projector", {bias: torch.full((64,), torch.nan)}, r"mlp1\.1\.bias holds NaN"),
        ({}, "lora", {}, "set no model.llm_lora"),
        (SETTINGS["lora"], "projector", {}, "holds no LoRA tensor"),
        ({"llm_lora": {**LORA, "init_lora_weights": "pissa"}}, "lora", {}, "pissa.*changes the base weights"),
        ({"llm_lora": {**LORA, "rank": 2}}, "lora", {}, "LoRA settings: rank"),
        ({"llm_lora": {**LORA, "lora_alpha": "8"}}, "lora", {}, "r=4 and lora_alpha='8' give no scale"),
        ({"visual_encoder_last_layers": "1"}, "projector", {}, "iter_1.pth holds something else"),
        ({"llm_lora": {**LORA, "trainable_token_indices": [3]}}, "lora", {}, "trained rows of language_model, but"),
        (SETTINGS["full"], "projector", {}, "trained vision_model, but it lacks"),
        (SETTINGS["last_layer"], "projector", {}, r"it lacks 14 of its tensors: vision_model.encoder.layers.1"),
    ):
        model = runs[held][1]
        own, model.made_with = model.made_with, {"base": toy_base, **settings}
        checkpoint = save_pth(model, tmp_path / "iter_1.pth", state={**model.state_dict(), **change})
        model.made_with = own
        refused(pattern, checkpoint, tmp_path / "out")
    refused("would overwrite the base", runs["projector"][0], toy_base, force=True)
    base, tensors = shutil.copytree(toy_base, tmp_path / "base"), load_file(toy_base / "model.safetensors")
    model = make_model(base)
    del tensors["vision_model.encoder.layers.1.norm2.weight"]  # frozen: the checkpoint knows nothing of it
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    refused(r"layers\.1\.norm2\.weight", save_pth(model, tmp_path / "iter_1.pth"), tmp_path / "out")


def test_our_code_and_template_ship_whatever_lies_in_the_base(toy_base, tmp_path):
    """An earlier version of it would prompt by the rules of its time, and foreign code would run on servers."""
    base = shutil.copytree(toy_base, tmp_path / "base", ignore=shutil.ignore_patterns("conversation.py"))
    (base / "prompts.py").write_text("# of an earlier version\n")
    (base / "extra.py").write_text("raise RuntimeError\n")
    fields = read_json(base / "config.json")
    write_json(base / "config.json", {**fields, "auto_map": {"AutoModel": "someone/else--extra.Model"}})
    words = read_json(base / "tokenizer_config.json")
    write_json(base / "tokenizer_config.json", {**words, "chat_template": "{{ messages[0]['content'] }}"})
    (base / "generation_config.json").unlink()
    export(None, save_pth(make_model(base), tmp_path / "iter_1.pth"), tmp_path / "out")
    assert read_json(tmp_path / "out" / "tokenizer_config.json") == words
    stops = {"_from_model_config": True, "eos_token_id": [load_tokenizer(base).convert_tokens_to_ids("<|im_end|>")]}
    assert read_json(tmp_path / "out" / "generation_config.json") == stops
    shipped = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.py")}
    assert shipped == {path.name: path.read_text() for path in hub_code()}
    assert read_json(tmp_path / "out" / "config.json")["auto_map"] == AUTO_MAP


def test_another_template_has_its_own_system_message():
    own = {"template": "a", "system_message": "Q", "no_system_message": False, "select_layer": -1}
    assert with_template(own, "b") == {"template": "b", "select_layer": -1}
    assert with_template(own, "a") == with_template(own, None) == own


def test_it_stops_at_the_templates_token(toy_base, tmp_path):
    """Also where the base has no generation config, or one with other tokens, as some official ones."""
    base, name = shutil.copytree(toy_base, tmp_path / "base"), "generation_config.json"
    stop, other = load_tokenizer(toy_base).convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    for number, (named, stops) in enumerate(((other, [stop, other]), ([other, stop], [other, stop]), (None, [stop]))):
        (base / name).unlink()
        if named:
            write_json(base / name, {"eos_token_id": named})
        convert(base, tmp_path / str(number), format="official")
        assert read_json(tmp_path / str(number) / name)["eos_token_id"] == stops
        (base / name).touch()


def test_the_tool_exports_and_verifies_in_a_clean_process(runs, run_tool, toy_base, tmp_path):
    """The whole road as a user takes it."""
    config = training.write_config(tmp_path / "c.py", toy_base, **SETTINGS["both_loras"])
    out = tmp_path / "out"
    done = run_tool("tools/convert_to_official.py", config, runs["both_loras"][0], out, "--verify")
    assert done.returncode == 0 and "10 adapters merged" in done.stdout, done.stderr
    assert f"verified: {out} stands\n  tensors that differ from the base: vision_model 4 of" in done.stdout
    assert r"| vision\_model | 4 | " in (out / "README.md").read_text()
