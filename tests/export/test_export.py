"""Exports: exported equals trained, from every kind of checkpoint; bad input writes nothing."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import HANGS_AFTER
from tests.weights.training import LORA, SETTINGS, chat_inputs, load_trained, logits, make_model, save_pth, write_config
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.export import export
from xtuner_plugins.export.trained import read_training_config
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.manifest import FILE
from xtuner_plugins.weights.reading import CheckpointError, read_json

# fp32, 2+2 layers of width 64: the same sums in another order (W + BA beside Wx + BAx), observed below 2e-6.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def run(toy_base, tmp_path_factory):
    """Makes (config, checkpoint, live model) of a named setting."""

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        model = make_model(toy_base, **SETTINGS[name])
        return (
            write_config(folder / "config.py", toy_base, **SETTINGS[name]),
            save_pth(model, folder / "iter_1.pth"),
            model,
        )

    return make


@pytest.mark.parametrize("name", SETTINGS)
def test_exported_equals_trained(run, name, tmp_path):
    config, checkpoint, trained = run(name)
    summary = export(config, checkpoint, tmp_path / "out")
    exported, _ = load_model(tmp_path / "out", dtype=None)
    exported.img_context_token_id = trained.model.img_context_token_id
    inputs = chat_inputs(trained.model)
    gap = (logits(exported, inputs) - logits(trained.model, inputs)).abs().max().item()
    assert gap <= TOLERANCE
    assert summary["num_merged"] == {"projector": 0, "full": 0, "lora": 6, "both_loras": 10}[name]


def test_untouched_tensors_are_the_bases_bytes(run, toy_base, tmp_path):
    config, checkpoint, _ = run("lora")
    export(config, checkpoint, tmp_path / "out")
    base, out = load_file(toy_base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert base.keys() == out.keys()
    merged = [k for k in base if not torch.equal(base[k], out[k])]
    expected = ["mlp1.0.bias", "mlp1.0.weight", "mlp1.1.bias", "mlp1.1.weight", "mlp1.3.bias", "mlp1.3.weight"]
    for i in range(2):
        expected += [f"language_model.model.layers.{i}.self_attn.{p}_proj.weight" for p in "qv"]
        expected += [f"language_model.model.layers.{i}.mlp.down_proj.weight"]
    assert sorted(merged) == sorted(expected)
    assert read_json(tmp_path / "out" / "config.json") == read_json(toy_base / "config.json")


def test_live_adapters_equal_merged(run):
    config, checkpoint, trained = run("both_loras")
    inputs = chat_inputs(trained.model)
    live = load_trained(config, checkpoint, dtype=torch.float32, merge_lora=False)
    merged = load_trained(str(config), checkpoint, dtype=torch.float32)
    reference = logits(trained.model, inputs)
    for model in (live, merged):
        model.img_context_token_id = trained.model.img_context_token_id
    assert torch.equal(logits(live, inputs), reference)  # the same operations on the same numbers
    assert (logits(merged, inputs) - reference).abs().max() <= TOLERANCE


def test_sharded_and_cast(run, toy_base, tmp_path):
    config, checkpoint, _ = run("projector")
    summary = export(config, checkpoint, tmp_path / "out", dtype="bfloat16", max_shard_size="300KB")
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert summary["num_shards"] == len(shards) > 1
    held = {k: v for s in shards for k, v in load_file(s).items()}
    assert index["weight_map"].keys() == held.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in held.values()) == summary["num_bytes"]
    base = load_file(toy_base / "model.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(held[name], base[name].bfloat16())
    written = read_json(tmp_path / "out" / "config.json")
    assert written["torch_dtype"] == written["llm_config"]["torch_dtype"] == "bfloat16"
    for shard in shards:
        header = json.loads(shard.read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
        assert header["__metadata__"] == {"format": "pt"}


def test_a_config_that_is_read_already_names_its_file(run, tmp_path):
    config, checkpoint, _ = run("lora")
    export(read_training_config(config), checkpoint, tmp_path / "out")
    assert read_json(tmp_path / "out" / FILE)["config"]["path"] == str(config)
    export_adapter(read_training_config(config), checkpoint, tmp_path / "adapter")


def test_manifest(run, toy_base, tmp_path):
    import hashlib

    config, checkpoint, _ = run("lora")
    export(config, checkpoint, tmp_path / "out")
    manifest = read_json(tmp_path / "out" / FILE)
    digest = hashlib.sha256((toy_base / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["base"]["sha256"]["model.safetensors"] == digest
    assert manifest["checkpoint"]["sha256"]["iter_1.pth"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert manifest["config"]["sha256"] == {config.name: hashlib.sha256(config.read_bytes()).hexdigest()}
    assert len(manifest["merged"]) == 6
    own = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert own.pop("README.md") and own.pop(FILE) and manifest["files"] == own  # users edit the card


UP = "model.language_model.model.layers.7.mlp.up_proj.weight"
# Settings of the config, of the checkpoint, what is changed in its tensors, and the message
REFUSED = [
    ("projector", "projector", {UP: torch.ones(2, 2)}, r"another model.*layers\.7\.mlp\.up_proj"),
    ("projector", "projector", {"model.mlp1.1.bias": torch.ones(7)}, r"mlp1\.1\.bias is \[7\], the base has \[64\]"),
    ("projector", "projector", {"model.mlp1.1.bias": torch.full((64,), torch.nan)}, r"mlp1\.1\.bias holds NaN"),
    ("projector", "lora", {}, "sets no model.llm_lora"),
    ("lora", "projector", {}, "holds no LoRA tensor"),
    ({"llm_lora": {**LORA, "r": 8}}, "lora", {}, "has rank 4 .*the config says r=8"),
    ({"llm_lora": {**LORA, "init_lora_weights": "pissa"}}, "lora", {}, "pissa.*changes the base weights"),
    ("full", "projector", {}, "trains vision_model .*lacks"),
    ({"base": "nowhere"}, "projector", {}, "the base of .* does not exist: nowhere"),
]


def refused(pattern, *args, **options):
    """Nothing may be written, and the message names the thing."""
    before = set(args[-1].parent.iterdir())
    with pytest.raises(CheckpointError, match=pattern):
        export(*args, **options)
    assert set(args[-1].parent.iterdir()) == before


@pytest.mark.parametrize("given, trained, change, pattern", REFUSED)
def test_what_does_not_belong_together(run, toy_base, tmp_path, given, trained, change, pattern):
    settings = SETTINGS[given] if isinstance(given, str) else given
    config = write_config(tmp_path / "c.py", **{"base": toy_base, **settings})
    torch.save({"state_dict": {**run(trained)[2].state_dict(), **change}}, tmp_path / "iter_1.pth")
    refused(pattern, config, tmp_path / "iter_1.pth", tmp_path / "out")


def test_existing_directories(run, toy_base, tmp_path):
    config, checkpoint, _ = run("projector")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    refused("holds no config.json.*remove it yourself", config, checkpoint, out, force=True)
    (out / "config.json").write_text("{}")
    refused("exists already.*--force", config, checkpoint, out)
    export(config, checkpoint, out, force=True)
    assert not (out / "mine.txt").exists() and (out / "config.json").is_file()
    before = {path.name: path.read_bytes() for path in toy_base.iterdir()}
    refused("would overwrite the base", config, checkpoint, toy_base, force=True)
    assert {path.name: path.read_bytes() for path in toy_base.iterdir()} == before


def test_a_base_that_is_no_whole_model(run, toy_base, tmp_path):
    _, checkpoint, _ = run("projector")
    base = shutil.copytree(toy_base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["vision_model.encoder.layers.1.norm2.weight"]  # frozen: the checkpoint knows nothing of it
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    refused(r"layers\.1\.norm2\.weight", write_config(tmp_path / "c.py", base), checkpoint, tmp_path / "out")


def test_unmerged_state_as_a_model(run, toy_base, tmp_path):
    shutil.copytree(toy_base, tmp_path / "unmerged")
    full = {k: v.contiguous().clone() for k, v in run("lora")[2].model.state_dict().items()}
    save_file(full, tmp_path / "unmerged" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="unmerged adapter"):
        load_model(tmp_path / "unmerged")


def test_tool_and_clean_process(run, run_tool, toy_base, tmp_path):
    """The whole road as a user takes it: the tool, then a process that can't import this project."""
    config, checkpoint, trained = run("both_loras")
    done = run_tool("tools/convert_to_official.py", config, checkpoint, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "10 adapters merged" in done.stdout
    inputs = chat_inputs(trained.model)
    torch.save({"inputs": inputs, "logits": logits(trained.model, inputs)}, tmp_path / "reference.pt")
    script = """
import sys, torch
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "xtuner_plugins":
            raise ImportError("this process may not import the project")
sys.meta_path.insert(0, Refuse())
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
    env = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    clean = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS_AFTER
    )
    assert clean.returncode == 0, clean.stderr
    gap = float(clean.stdout.split("gap ")[1].split()[0])
    assert gap <= TOLERANCE
    assert "answer 1 True" in clean.stdout


def test_qlora_is_merged_into_the_unquantized_base(toy_base, tmp_path):
    """The packed weights of training never reach the export: base + scaling * B A, in fp32, and nothing else."""
    from transformers import BitsAndBytesConfig

    settings = dict(llm_lora=LORA, llm_quantization={"type": BitsAndBytesConfig, "load_in_4bit": True})
    trained = make_model(toy_base, **settings)
    config = write_config(tmp_path / "c.py", toy_base, **settings)
    config.write_text("from transformers import BitsAndBytesConfig\n" + config.read_text())
    state = trained.state_dict()
    export(config, save_pth(trained, tmp_path / "iter_1.pth"), tmp_path / "out")
    base, out = load_file(toy_base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    layer = "language_model.model.layers.1.mlp.down_proj"
    a, b = (state[f"model.{layer}.lora_{k}.default.weight"] for k in "AB")
    expected = base[f"{layer}.weight"] + 2.0 * b @ a  # alpha 8 over rank 4
    torch.testing.assert_close(out[f"{layer}.weight"], expected, rtol=0, atol=1e-6)
    untouched = "language_model.model.layers.1.mlp.up_proj.weight"
    assert torch.equal(out[untouched], base[untouched]) and base.keys() == out.keys()
