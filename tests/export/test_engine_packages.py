"""An export against the published packages of vLLM, SGLang and lmdeploy: what they look up in it is there.

Their wheels (half a gigabyte) are read as text by `tests/published_wheels.py`. This shows that the engines know
the architecture and find the fields that they read, not that they compute the same.
"""

import ast

import pytest

from tests import published_wheels
from xtuner_plugins.export.export import convert
from xtuner_plugins.weights.reading import read_json

RELEASES = {"vllm": "0.33.0", "sglang": "0.5.23", "lmdeploy": "0.18.0"}
OFFICIAL, HF = "InternVLChatModel", "InternVLForConditionalGeneration"
# File of a package: the names by which the engine finds its class for our directory.
LOOKUPS = {
    "vllm/model_executor/models/registry.py": (f'"{OFFICIAL}":', f'"{HF}":'),
    "sglang/srt/models/internvl.py": (f"\nEntryClass = {OFFICIAL}\n",),
    "sglang/srt/configs/internvl.py": ('\n    model_type = "internvl_chat"\n',),
    "sglang/srt/parser/conversation.py": ('\n    "internvl_chat": "internvl-2-5",\n',),
    "lmdeploy/turbomind/supported_models.py": (f"\n    {OFFICIAL}=", f"\n    {HF}="),
    "lmdeploy/pytorch/models/module_map.py": (f"\n    '{OFFICIAL}':", f"\n    '{HF}'"),
    "lmdeploy/vl/model/internvl.py": (f"\n    _arch = '{OFFICIAL}'\n",),
}
# Files that read the fields of an official directory, and what else they read of their config objects.
READERS = {
    "vllm/model_executor/models/internvl.py": {"text_config"},  # vLLM's own name for llm_config
    "vllm/model_executor/models/intern_vit.py": set(),
    "sglang/srt/models/internvl.py": {"output_hidden_states", "use_return_dict"},  # of every config of transformers
    "sglang/srt/multimodal/processors/internvl.py": set(),
    "lmdeploy/vl/model/internvl.py": set(),
    # Of InternVL 3.5 "Flash", behind a look for the field.
    "lmdeploy/pytorch/models/internvl.py": {"flash_absolute_threshold", "flash_relative_threshold"},
    "lmdeploy/pytorch/configurations/internvl.py": set(),
}


def fields_read(text):
    """Names of attributes that are read of objects called `config` and the like."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    read = [node for node in nodes if isinstance(node.ctx, ast.Load)]
    configs = ("config", "hf_config", "vision_config")
    return {node.attr for node in read if getattr(node.value, "attr", getattr(node.value, "id", None)) in configs}


@pytest.mark.release
@pytest.mark.parametrize("package", RELEASES)
def test_what_an_engine_looks_up_is_in_our_exports(package, toy_base, tmp_path):
    convert(toy_base, tmp_path / "hf", format="hf")
    config, hf = (read_json(folder / "config.json") for folder in (toy_base, tmp_path / "hf"))
    assert (config["architectures"], config["model_type"], hf["architectures"]) == ([OFFICIAL], "internvl_chat", [HF])
    # vLLM and lmdeploy prompt through it; the training's system prompt is in it.
    assert "chat_template" in read_json(toy_base / "tokenizer_config.json")
    ours = {*config, *config["vision_config"], *config["llm_config"]}
    for name in (each for each in {**LOOKUPS, **READERS} if each.startswith(f"{package}/")):
        text = published_wheels.read(package, RELEASES[package], name)
        assert [each for each in LOOKUPS.get(name, ()) if each not in text] == [], name
        assert name not in READERS or fields_read(text) - ours == READERS[name], name
