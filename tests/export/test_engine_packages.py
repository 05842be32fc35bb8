"""An export against the published packages of vLLM, SGLang and lmdeploy: what they look up in it is there.

Their wheels (half a gigabyte) are read as text by `tests/published_wheels.py`. This shows that the engines know
the architecture and find the fields that they read, not that they compute the same.
"""

import ast
import re

import pytest

from tests import published_wheels
from xtuner_plugins.export.export import convert
from xtuner_plugins.weights.reading import read_json

pytestmark = pytest.mark.release

RELEASES = {"vllm": "0.33.0", "sglang": "0.5.23", "lmdeploy": "0.18.0"}
# Package, file of it, what must be in the file: the name by which the engine finds its class for our directory.
OFFICIAL, HF = "InternVLChatModel", "InternVLForConditionalGeneration"
LOOKUPS = [
    ("vllm", "vllm/model_executor/models/registry.py", rf'"{OFFICIAL}":'),
    ("vllm", "vllm/model_executor/models/registry.py", rf'"{HF}":'),
    ("sglang", "sglang/srt/models/internvl.py", rf"^EntryClass = {OFFICIAL}$"),
    ("sglang", "sglang/srt/configs/internvl.py", r'^    model_type = "internvl_chat"$'),
    ("sglang", "sglang/srt/parser/conversation.py", r'^    "internvl_chat": "internvl-2-5",$'),
    ("lmdeploy", "lmdeploy/turbomind/supported_models.py", rf"^    {OFFICIAL}="),
    ("lmdeploy", "lmdeploy/turbomind/supported_models.py", rf"^    {HF}="),
    ("lmdeploy", "lmdeploy/pytorch/models/module_map.py", rf"^    '{OFFICIAL}':"),
    ("lmdeploy", "lmdeploy/pytorch/models/module_map.py", rf"^    '{HF}'"),
    ("lmdeploy", "lmdeploy/vl/model/internvl.py", rf"^    _arch = '{OFFICIAL}'$"),
]
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
CONFIGS = ("config", "hf_config", "vision_config")


@pytest.fixture(scope="module")
def source():
    """Returns the text of a file in the wheel of a package."""
    return lambda package, name: published_wheels.read(package, RELEASES[package], name)


def fields_read(text):
    """Names of attributes that are read of objects called `config` and the like."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if getattr(node.value, "attr", getattr(node.value, "id", None)) in CONFIGS:
                found.add(node.attr)
    return found


@pytest.mark.parametrize("package, name, pattern", LOOKUPS)
def test_engines_know_the_architecture(package, name, pattern, source):
    assert re.search(pattern, source(package, name), re.MULTILINE)


def test_exports_have_the_names_that_are_looked_up(toy_base, tmp_path):
    official = read_json(toy_base / "config.json")
    assert (official["architectures"], official["model_type"]) == ([OFFICIAL], "internvl_chat")
    convert(toy_base, tmp_path / "hf", format="hf")
    assert read_json(tmp_path / "hf" / "config.json")["architectures"] == [HF]
    # vLLM and lmdeploy prompt through it; the training's system prompt is in it.
    assert "chat_template" in read_json(toy_base / "tokenizer_config.json")


@pytest.mark.parametrize("name", READERS)
def test_exports_have_the_fields_that_are_read(name, source, toy_base):
    config = read_json(toy_base / "config.json")
    ours = set(config) | set(config["vision_config"]) | set(config["llm_config"])
    found = fields_read(source(name.partition("/")[0], name))
    assert found and found - ours == READERS[name]
