"""Nothing outside of a model directory is asked or run because of its JSON files; files that lie are refused."""

import contextlib
import json
import re
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.weights.language_models import write_llm
from tests.weights.training import LORA, make_model, save_pth, training_inputs
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.families import UnknownFamilyError
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.session import Turn
from xtuner_plugins.weights.allowed import FILES, language_fields
from xtuner_plugins.weights.errors import CheckpointError
from xtuner_plugins.weights.model_view import open_config
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json

KERNEL = "someone/attention:forward"
# What bitsandbytes asks for by itself, whatever the model, when PEFT imports it on a processor with AVX512-BF16.
BITSANDBYTES = "kernels-community/quantization-bitsandbytes"
FOREIGN = {
    **dict.fromkeys(("_attn_implementation", "_attn_implementation_internal", "attn_implementation"), KERNEL),
    "attribute_map": {"hidden_size": "torch_dtype"},
    "auto_map": {"AutoModel": "someone/else--modeling.Model"},
    "custom_generate": "someone/loop",
    "quantization_config": {"quant_method": "fbgemm_fp8"},
    "use_kernels": True,
}


def poisoned(base, to):
    """A copy of a model directory with foreign keys in every JSON file, at every level."""
    shutil.copytree(base, to)
    (to / "export_manifest.json").unlink(missing_ok=True)
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
    fields = {"rope_scaling": {"type": "dynamic", "factor": 2.0, "other": 1}, "rope_parameters": {"full_attention": {}}}
    least = {"model_type": "llama", "pad_token_id": -1, "num_hidden_layers": 1000}  # and most
    kept = language_fields({**least, **fields}, "config.json")
    assert (kept["rope_scaling"], kept["rope_parameters"]) == ({"type": "dynamic", "factor": 2.0}, {})
    assert "config.json: rope_scaling: left out other" in caplog.text
    newer = {"model_type": "qwen3_moe", "num_local_experts": 4}  # of transformers 5
    assert language_fields(newer, "config.json")["num_experts"] == 4


# Stands in for the package that fetches kernels, before anything is imported.
KERNELS = """
import pathlib, sys
from importlib import machinery, metadata
from unittest.mock import MagicMock
kernels, version = MagicMock(__spec__=machinery.ModuleSpec("kernels", None)), metadata.version
kernels.get_kernel.side_effect = RuntimeError
kernels.use_kernel_forward_from_hub = lambda name: lambda layer: layer
sys.modules["kernels"] = kernels
metadata.version = lambda name: "0.10.0" if name == "kernels" else version(name)
from tests.weights import test_allowed
test_allowed.build_train_export_and_ask(pathlib.Path(sys.argv[1]), kernels.get_kernel)
"""


def build_train_export_and_ask(folder, asked):
    """Per language model: a poisoned part becomes a base, which is poisoned again, trained, exported, and asked.

    At last the stand-in is shown to see what is asked.
    """
    lora = dict(llm_lora={**LORA, "target_modules": ["down_proj"]})
    for llm in sorted(folder.glob("llm-*")):
        name = llm.name.removeprefix("llm-")
        base = build_base(folder / "vision", llm, folder / f"base-{name}", template="internvl2_5", dtype="float32")
        base = poisoned(base["out"], folder / f"poisoned-{name}")
        model = make_model(base, **lora)
        model(**training_inputs(model, torch.arange(9)[None]), mode="loss")["loss"].backward()
        checkpoint = save_pth(model, folder / "iter_1.pth")
        export_adapter(None, checkpoint, folder / f"peft-{name}")
        for format in ("official",) if name == "phi3" else ("official", "hf"):  # hf gives phi3 its own template
            export(None, checkpoint, folder / f"{format}-{name}", format=format)
            again = poisoned(folder / f"{format}-{name}", folder / f"again-{format}-{name}")
            session = open_session(again, device="cpu")
            list(session.reply([Turn("Hello")], max_new_tokens=1))
            session.answers([("Hello", ()), ("Bye", ())], batch_size=2, max_new_tokens=1)  # what an evaluation asks
    assert {call.args[0] for call in asked.call_args_list} <= {BITSANDBYTES}, asked.call_args_list
    with contextlib.suppress(Exception):
        AutoModelForCausalLM.from_config(AutoConfig.for_model("gptj", n_layer=1), attn_implementation=KERNEL)
    assert "someone/attention" in str(asked.call_args_list)


@pytest.mark.slow
def test_no_kernels_are_asked_for(toy_parts, run_tool, tmp_path):
    poisoned(toy_parts[0], tmp_path / "vision")
    poisoned(toy_parts[1], tmp_path / "llm-qwen2")
    for family in ("qwen3", "qwen3_moe", "llama", "mistral", "phi3", "internlm2", "qwen"):
        poisoned(write_llm(family, tmp_path / family, toy_parts[1]), tmp_path / f"llm-{family}")
    done = run_tool("-c", KERNELS, tmp_path)
    assert done.returncode == 0 and len(list(tmp_path.glob("official-*"))) == 8, done.stderr[-3000:]


def test_configs_that_lie(toy_base, tmp_path, run_tool, refused):
    """The command says the last one in one line, and writes nothing."""
    llm, vision, base = "llm_config", "vision_config", shutil.copytree(toy_base, tmp_path / "base")
    fields = read_json(base / "config.json")
    rows = fields[llm]["vocab_size"]
    bloom = {"architectures": ["BloomForCausalLM"], "hidden_size": 64}  # it would be built though no type names it
    lies = [
        ({**fields, llm: bloom}, "model_type None is not a language model"),
        *(({**fields, "downsample_ratio": value}, "ratio is .*, expected 0.01 to 1$") for value in (0, 3, "1")),
        ({**fields, "max_dynamic_patch": "6"}, "max_dynamic_patch is '6'"),
        ({**fields, "system_message": 3}, "system_message is 3, expected str"),
        ({"model_type": "internvl", "text_config": {}}, r"base holds something else .*'vision_config'"),
        ({"model_type": "internvl"}, "base is not an official InternVL directory"),
    ]
    for part, key, value, words in (
        (llm, "hidden_act", ["gelu"], r"hidden_act is \['gelu'\]"),
        (llm, "rope_scaling", {"rope_type": "spiral", "factor": 2.0}, "rope_scaling: the type is 'spiral'"),
        (llm, "rope_scaling", "yarn", "rope_scaling is 'yarn', expected an object"),
        (llm, "eos_token_id", "</s>", "eos_token_id is '</s>', expected ids"),
        *((llm, "eos_token_id", [1, n], r"eos_token_id is \[1, -?\d+\], expected ids") for n in (-2, rows)),
        (llm, "num_hidden_layers", 10**6, "is 1000000, expected a whole number from 1 to 1,000"),
        (vision, "hidden_size", True, "hidden_size is True"),
        (vision, "patch_size", 0, "patch_size is 0, expected a whole number from 1 to 1,000"),
        *((llm, "model_type", name, "is not a language") for name in ("gptj", "bloom", "codegen", "xglm", None, 3)),
        (llm, "num_key_value_heads", 0, "num_key_value_heads is 0"),
        *((llm, "rms_norm_eps", value, r"rms_norm_eps is .*, expected 0 to 1$") for value in ("1e-6", None, 2)),
        # The class that stands beside it would open it; transformers builds what the type names, and `detr` asks timm.
        *((vision, "model_type", name, "is not a vision encoder") for name in ("detr", "timm_wrapper", "upernet")),
        (vision, "hidden_act", "os.system", "hidden_act is 'os.system', expected one of silu"),
    ):
        lies.append(({**fields, part: {**fields[part], key: value}}, words))
    (base / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    refused("config.json is not readable JSON: maximum recursion", open_config, base)
    for lie, words in lies:
        write_json(base / "config.json", lie)
        refused(words, open_config, base, error=(CheckpointError, UnknownFamilyError))
    done = run_tool("tools/convert_to_official.py", "--from", base, tmp_path / "out", "--format", "hf")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and words in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
