"""An exported directory opened in a process of its own: AutoModel runs the copies, this project is out of reach."""

import ast
import sys

import pytest

from .cases import LLMS, RMS_VISION, code_files, make_config, make_model, make_tokenizer, write_directory
from .probing import compare_reports, run_probe


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    tokenizer = make_tokenizer(root / "tokenizer")
    model = make_model(make_config(RMS_VISION, LLMS["qwen2"], vocab_size=len(tokenizer)))
    return run_probe(sys.executable, write_directory(root / "model", model, root / "tokenizer"), root / "probe")


def test_opens_and_chats_without_this_project(report):
    assert report["model_code"] == {"image_tokens": 16, "template": "internvl2_5"}
    assert report["chat_one_image"] != report["chat_text_only"]


def test_the_comparison_of_reports_sees_a_difference(report):
    assert compare_reports(report, report) == 0
    other = {**report, "forward": [[value + 1e-4 for value in row] for row in report["forward"]]}
    with pytest.raises(AssertionError):
        compare_reports(other, report)
    with pytest.raises(AssertionError, match="chat_text_only"):
        compare_reports({**report, "chat_text_only": "another"}, report)


def test_files_import_nothing_but_torch_and_transformers():
    assert [path.stem for path in code_files()] == [
        "chat_methods",
        "configuration_intern_vit",
        "configuration_internvl_chat",
        "constants",
        "conversation",
        "modeling_flash",
        "modeling_intern_vit",
        "modeling_internvl_chat",
        "modeling_vision_tower",
        "prompts",
    ]
    allowed = {"__future__", "copy", "dataclasses", "enum", "inspect", "re", "torch", "transformers"}
    for path in code_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom):
                flat = node.level == 1 and node.module and "." not in node.module
                assert flat or (not node.level and node.module.split(".")[0] in allowed), path
