"""Exports: exported equals trained, from every kind of checkpoint; bad input writes nothing."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import HANGS_AFTER
from tests.weights.training import (
    LORA,
    SETTINGS,
    chat_inputs,
    load_trained,
    logits,
    make_model,
    save_pth,
    with_context,
    write_config,
)
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.export import export
from xtuner_plugins.export.trained import read_training_config
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.manifest import FILE
from xtuner_plugins.weights.reading import CheckpointError, read_json

# fp32, 2+2 layers of width 64: the same sums in another order (W + BA beside Wx + BAx), observed below 2e-6.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def runs(toy_base, tmp_path_factory):
    """(checkpoint, live model) by the name of its settings."""
    folder = tmp_path_factory.mktemp("runs")
    models = {name: make_model(toy_base, **settings) for name, settings in SETTINGS.items()}
    return {name: (save_pth(model, folder / f"{name}.pth"), model) for name, model in models.items()}


def test_exported_equals_trained(runs, toy_base, tmp_path):
    """And what wasn't trained are the base's bytes."""
    base = load_file(toy_base / "model.safetensors")
    for name, merged in {"projector": 0, "full": 0, "lora": 6, "both_loras": 10}.items():
        checkpoint, trained = runs[name]
        assert export(None, checkpoint, tmp_path / name)["num_merged"] == merged
        exported, inputs = load_model(tmp_path / name, dtype=None), chat_inputs(trained.model)
        gap = logits(with_context(exported, trained.model), inputs) - logits(trained.model, inputs)
        assert gap.abs().max() <= TOLERANCE, name
        live = load_trained(None, checkpoint, dtype=torch.float32, merge_lora=False)
        assert torch.equal(logits(with_context(live, trained.model), inputs), logits(trained.model, inputs))
        assert read_json(tmp_path / name / "config.json") == read_json(toy_base / "config.json")
    held = load_file(tmp_path / "lora" / "model.safetensors")
    assert held.keys() == base.keys()
    parts = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    changed = {f"language_model.model.layers.{i}.{part}.weight" for i in range(2) for part in parts}
    assert {n for n in base if not torch.equal(base[n], held[n])} == changed | {n for n in base if "mlp1." in n}


def test_sharded_and_cast(runs, toy_base, tmp_path):
    summary = export(None, runs["projector"][0], tmp_path / "out", dtype="bfloat16", max_shard_size="300KB")
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert summary["num_shards"] == len(shards) > 1
    held = {k: v for s in shards for k, v in load_file(s).items()}
    assert index["weight_map"].keys() == held.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in held.values()) == summary["num_bytes"]
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(held[name], load_file(toy_base / "model.safetensors")[name].bfloat16())
    written = read_json(tmp_path / "out" / "config.json")
    assert written["torch_dtype"] == written["llm_config"]["torch_dtype"] == "bfloat16"
    for shard in shards:
        header = json.loads(shard.read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
        assert header["__metadata__"] == {"format": "pt"}


def test_manifest(runs, toy_base, tmp_path):
    """Of base, checkpoint and config, which may be read already, and of what was written."""
    checkpoint, config = runs["lora"][0], write_config(tmp_path / "config.py", toy_base, **SETTINGS["lora"])
    export(read_training_config(config), checkpoint, tmp_path / "out")
    export_adapter(read_training_config(config), checkpoint, tmp_path / "adapter")
    manifest = read_json(tmp_path / "out" / FILE)

    def digest(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert manifest["base"]["sha256"]["model.safetensors"] == digest(toy_base / "model.safetensors")
    assert manifest["checkpoint"]["sha256"] == {checkpoint.name: digest(checkpoint)}
    assert manifest["config"] == {"path": str(config), "sha256": {config.name: digest(config)}}
    assert len(manifest["merged"]) == 6
    own = {path.name: digest(path) for path in (tmp_path / "out").iterdir()}
    assert own.pop("README.md") and own.pop(FILE) and manifest["files"] == own  # users edit the card


def refused(pattern, *args, **options):
    """Nothing may be written, and the message names the thing."""
    before = set(args[-1].parent.iterdir())
    with pytest.raises(CheckpointError, match=pattern):
        export(*args, **options)
    assert set(args[-1].parent.iterdir()) == before


def test_what_does_not_belong_together(runs, toy_base, tmp_path):
    up = "model.language_model.model.layers.7.mlp.up_proj.weight"
    for said, held, change, pattern in (  # settings of the record, tensors, what is changed in them
        ("projector", "projector", {up: torch.ones(2, 2)}, r"another model.*layers\.7\.mlp\.up_proj"),
        ("projector", "projector", {"model.mlp1.1.bias": torch.ones(7)}, r"bias is \[7\], the base has \[64\]"),
        ("projector", "projector", {"model.mlp1.1.bias": torch.full((64,), torch.nan)}, r"mlp1\.1\.bias holds NaN"),
        ("projector", "lora", {}, "set no model.llm_lora"),
        ("lora", "projector", {}, "holds no LoRA tensor"),
        ({"llm_lora": {**LORA, "r": 8}}, "lora", {}, "has rank 4 .*the run's settings say r=8"),
        ({"llm_lora": {**LORA, "init_lora_weights": "pissa"}}, "lora", {}, "pissa.*changes the base weights"),
        ({"llm_lora": {**LORA, "rank": 2}}, "lora", {}, "LoRA settings: rank"),
        ("full", "projector", {}, "trained vision_model .*lacks"),
    ):
        model = runs[held][1]
        before, model.made_with = (
            model.made_with,
            {"base": toy_base, **(said if type(said) is dict else SETTINGS[said])},
        )
        checkpoint = save_pth(model, tmp_path / "iter_1.pth", state={**model.state_dict(), **change})
        model.made_with = before
        refused(pattern, None, checkpoint, tmp_path / "out")


def test_existing_directories(runs, toy_base, tmp_path):
    checkpoint, out = runs["projector"][0], tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    refused("holds no config.json.*remove it yourself", None, checkpoint, out, force=True)
    (out / "config.json").write_text("{}")
    refused("exists already.*--force", None, checkpoint, out)
    export(None, checkpoint, out, force=True)
    assert not (out / "mine.txt").exists() and (out / "config.json").is_file()
    before = {path.name: path.read_bytes() for path in toy_base.iterdir()}
    refused("would overwrite the base", None, checkpoint, toy_base, force=True)
    assert {path.name: path.read_bytes() for path in toy_base.iterdir()} == before


def test_a_base_that_is_no_whole_model(runs, toy_base, tmp_path):
    base = shutil.copytree(toy_base, tmp_path / "base")
    model = make_model(base)
    tensors = load_file(base / "model.safetensors")
    del tensors["vision_model.encoder.layers.1.norm2.weight"]  # frozen: the checkpoint knows nothing of it
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    refused(r"layers\.1\.norm2\.weight", None, save_pth(model, tmp_path / "iter_1.pth"), tmp_path / "out")
    full = {k: v.contiguous().clone() for k, v in runs["lora"][1].model.state_dict().items()}
    save_file(full, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="unmerged adapter"):
        load_model(base)


# A process that can't import this project.
STRANGER = """
import sys, torch
sys.modules["xtuner_plugins"] = None
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained("out", trust_remote_code=True, torch_dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained("out", trust_remote_code=True, use_fast=False)
ref = torch.load("reference.pt", weights_only=True)
pixels, ids, flags = ref["inputs"]
model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
with torch.no_grad():
    out = model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), image_flags=flags).logits
print("gap", (out - ref["logits"]).abs().max().item())
answer, history = model.chat(tokenizer, pixels, "<image>\\nWhat?", dict(max_new_tokens=4), return_history=True)
print("answer", len(history), isinstance(answer, str))
"""


def test_tool_and_clean_process(runs, run_tool, toy_base, tmp_path):
    """The whole road as a user takes it."""
    checkpoint, trained = runs["both_loras"]
    config = write_config(tmp_path / "config.py", toy_base, **SETTINGS["both_loras"])
    done = run_tool("tools/convert_to_official.py", config, checkpoint, tmp_path / "out")
    assert done.returncode == 0 and "10 adapters merged" in done.stdout, done.stderr
    inputs = chat_inputs(trained.model)
    torch.save({"inputs": inputs, "logits": logits(trained.model, inputs)}, tmp_path / "reference.pt")
    env = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", STRANGER]
    clean = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS_AFTER)
    assert clean.returncode == 0, clean.stderr
    assert float(clean.stdout.split("gap ")[1].split()[0]) <= TOLERANCE and "answer 1 True" in clean.stdout


def test_qlora_is_merged_into_the_unquantized_base(toy_base, tmp_path):
    """The packed weights of training never reach the export: base + scaling * B A, in fp32, and nothing else."""
    from transformers import BitsAndBytesConfig

    trained = make_model(toy_base, llm_lora=LORA, llm_quantization={"type": BitsAndBytesConfig, "load_in_4bit": True})
    state = trained.state_dict()
    export(None, save_pth(trained, tmp_path / "iter_1.pth"), tmp_path / "out")
    base, out = load_file(toy_base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    layer = "language_model.model.layers.1.mlp.down_proj"
    a, b = (state[f"model.{layer}.lora_{k}.default.weight"] for k in "AB")
    expected = base[f"{layer}.weight"] + 2.0 * b @ a  # alpha 8 over rank 4
    torch.testing.assert_close(out[f"{layer}.weight"], expected, rtol=0, atol=1e-6)
    untouched = "language_model.model.layers.1.mlp.up_proj.weight"
    assert torch.equal(out[untouched], base[untouched]) and base.keys() == out.keys()
