"""Nothing outside of a model directory is asked or run because of its JSON files; files that lie are refused."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.weights.language_models import write_llm
from tests.weights.training import LORA, make_model, save_pth, training_inputs, write_config
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.families import UnknownFamilyError
from xtuner_plugins.inference.session import ChatSession, Turn
from xtuner_plugins.weights.allowed import FILES, language_fields
from xtuner_plugins.weights.errors import CheckpointError
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.model_view import open_config
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json

KERNEL = "someone/attention:forward"
# What bitsandbytes asks for by itself, whatever the model, when PEFT imports it on a processor with AVX512-BF16.
BITSANDBYTES = "kernels-community/quantization-bitsandbytes"
FOREIGN = {
    "_attn_implementation": KERNEL,
    "_attn_implementation_internal": KERNEL,
    "attn_implementation": KERNEL,
    "attribute_map": {"hidden_size": "torch_dtype"},
    "auto_map": {"AutoModel": "someone/else--modeling.Model"},
    "custom_generate": "someone/loop",
    "quantization_config": {"quant_method": "fbgemm_fp8"},
    "use_kernels": True,
}


def poisoned(base, to):
    """A copy of a model directory with foreign keys in every JSON file, at every level."""
    shutil.copytree(base, to)
    for name in ("config.json", *FILES):
        fields = read_json(to / name, missing={})
        for each in (fields, *(fields[part] for part in ("llm_config", "vision_config") if part in fields)):
            each.update(FOREIGN)
        write_json(to / name, fields)
    return to


def test_foreign_keys_are_left_out_and_named(toy_base, tmp_path, caplog):
    base = poisoned(toy_base, tmp_path / "base")
    _, stored, config = open_config(base)
    assert re.search("base/config.json: left out .*_attn_implementation,.*use_kernels", caplog.text)
    assert "base/config.json: llm_config: left out" in caplog.text
    assert "someone" not in json.dumps([stored, config])
    for format in ("official", "hf"):
        convert(base, tmp_path / format, format=format)
        for path in (tmp_path / format).glob("*.json"):
            text = path.read_text(encoding="utf-8")
            assert path.name == "tokenizer.json" or not any(f'"{key}"' in text for key in FOREIGN if key != "auto_map")
            assert "someone/" not in text, path


# Stands in for the package that fetches kernels, and writes down what is asked of it.
KERNELS = """
import pathlib
class Anything:
    def __init__(self, *args, **kwargs): pass
    def __getattr__(self, name): return Anything()
    def __call__(self, *args, **kwargs): return Anything()
    def __or__(self, other): return Anything()
Mode = Anything()
def use_kernel_forward_from_hub(name):
    return lambda layer: layer
def get_kernel(name, *args, **kwargs):
    with open(pathlib.Path(__file__).parents[1] / "asked", "a") as file:
        print(name, file=file)
    raise RuntimeError(f"asked for {name}")
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything
"""
# At last the recorder is shown to record.
ASKED = """
import pathlib, sys
from tests.weights.test_allowed import BITSANDBYTES, KERNEL, build_train_export_and_ask
folder = pathlib.Path(sys.argv[1])
build_train_export_and_ask(folder)
asked = (folder / "asked").read_text().split() if (folder / "asked").exists() else []
assert set(asked) <= {BITSANDBYTES}, asked
from transformers import AutoConfig, AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gptj", n_layer=1), attn_implementation=KERNEL)
except Exception as error:
    print(error)
"""


def build_train_export_and_ask(folder):
    """Per language model: a poisoned part becomes a base, which is poisoned again, trained, exported, and asked."""
    lora = dict(llm_lora={**LORA, "target_modules": ["down_proj"]})
    for llm in sorted(folder.glob("llm-*")):
        name = llm.name.removeprefix("llm-")
        base = build_base(folder / "vision", llm, folder / f"base-{name}", template="internvl2_5", dtype="float32")
        base = poisoned(base["out"], folder / f"poisoned-{name}")
        model = make_model(base, **lora)
        model(**training_inputs(model, torch.arange(9)[None]), mode="loss")["loss"].backward()
        checkpoint = save_pth(model, folder / "iter_1.pth")
        config = write_config(folder / f"{name}.py", base, **lora)
        export_adapter(config, checkpoint, folder / f"peft-{name}")
        for format in ("official",) if name == "phi3" else ("official", "hf"):  # hf gives phi3 its own template
            out = folder / f"{format}-{name}"
            export(config, checkpoint, out, format=format)
            again = poisoned(out, folder / f"again-{format}-{name}")
            (again / "export_manifest.json").unlink()
            session = ChatSession.from_pretrained(again, device="cpu")
            list(session.reply([Turn("Hello")], max_new_tokens=1))
            session.answers([("Hello", ()), ("Bye", ())], batch_size=2, max_new_tokens=1)  # what an evaluation asks


@pytest.mark.slow
def test_no_kernels_are_asked_for(toy_parts, tmp_path):
    poisoned(toy_parts[0], tmp_path / "vision")
    for family in ("qwen3", "qwen3_moe", "llama", "mistral", "phi3", "internlm2", "qwen"):
        poisoned(write_llm(family, tmp_path / family, toy_parts[1]), tmp_path / f"llm-{family}")
    poisoned(toy_parts[1], tmp_path / "llm-qwen2")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(KERNELS)
    info = tmp_path / "kernels-0.10.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.10.0\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", ASKED, tmp_path], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.glob("official-*"))) == 8
    assert "someone/attention" in (tmp_path / "asked").read_text()


def test_configs_that_lie(toy_base, tmp_path, run_tool):
    """The command says the last one in one line, and writes nothing."""
    base, table = (
        tmp_path / "base",
        [
            ("llm_config", "hidden_act", ["gelu"], r"hidden_act is \['gelu'\]"),
            (
                "llm_config",
                "rope_scaling",
                {"rope_type": "spiral", "factor": 2.0},
                "rope_scaling: the type is 'spiral'",
            ),
            ("llm_config", "rope_scaling", "yarn", "rope_scaling is 'yarn', expected an object"),
            ("llm_config", "eos_token_id", "</s>", "eos_token_id is '</s>', expected ids"),
            ("llm_config", "eos_token_id", [1, 10**9], "eos_token_id is .*expected ids"),
            ("llm_config", "num_hidden_layers", 10**6, "is 1000000, expected a whole number from 1 to 1,000"),
            ("vision_config", "hidden_size", True, "hidden_size is True"),
            ("vision_config", "patch_size", 0, "patch_size is 0"),
            *(
                ("llm_config", "model_type", name, "llm_config: model_type .* is not a language model")
                for name in ("gptj", "bloom", "codegen", "xglm", None, 3)
            ),
            ("vision_config", "hidden_act", "os.system", "hidden_act is 'os.system', expected one of silu"),
        ],
    )
    fields = read_json(toy_base / "config.json")
    shutil.copytree(toy_base, base)
    for part, key, value, message in table:
        write_json(base / "config.json", {**fields, part: {**fields[part], key: value}})
        error = UnknownFamilyError if key == "model_type" else CheckpointError
        with pytest.raises(error, match=message):
            open_config(base)
    done = run_tool("tools/convert_to_official.py", "--from", base, tmp_path / "out", "--format", "hf")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and message in done.stderr, done.stderr
    (base / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(CheckpointError, match="config.json is not readable JSON: maximum recursion"):
        open_config(base)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers(toy_parts, toy_base, tmp_path):
    for source, name in ((toy_parts[1], "llm"), (toy_base, "base")):
        shutil.copytree(source, tmp_path / name)
        held = load_file(source / "model.safetensors")
        next(tensor for key, tensor in held.items() if key.endswith("down_proj.weight"))[0, 0] = torch.nan
        save_file(held, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="down_proj.weight holds NaN or infinity as float32; take other weights"):
        build_base(toy_parts[0], tmp_path / "llm", tmp_path / "out", dtype="float32")
    with pytest.raises(CheckpointError, match="down_proj.weight holds NaN or infinity; take other weights"):
        load_model(tmp_path / "base", dtype=None)
    assert not (tmp_path / "out").exists()


def test_rope_parameters_are_listed_too(caplog):
    fields = {"rope_scaling": {"type": "dynamic", "factor": 2.0, "other": 1}, "rope_parameters": {"full_attention": {}}}
    kept = language_fields({"model_type": "llama", **fields}, "config.json")
    assert (kept["rope_scaling"], kept["rope_parameters"]) == ({"type": "dynamic", "factor": 2.0}, {})
    assert "config.json: rope_scaling: left out other" in caplog.text
