"""An exported directory opened in a process of its own: AutoModel runs the copies, this project is out of reach."""

import ast
import sys

import pytest

from .cases import RMS_VISION, code_files, make_config, make_tokenizer, write_directory
from .probing import compare_reports, run_probe


def test_opens_and_chats_without_this_project(tmp_path):
    words = len(make_tokenizer(tmp_path / "tokenizer"))
    directory = write_directory(tmp_path / "model", make_config(RMS_VISION, vocab_size=words), tmp_path / "tokenizer")
    report = run_probe(sys.executable, directory, tmp_path / "probe")
    assert report["names"] == ["internvl_chat", "qwen2", 16, "internvl2_5"]
    assert report["answers"][0] != report["answers"][2] and compare_reports(report, report) == 0
    for other in ({"answers": []}, {"forward": [[value + 1e-4 for value in row] for row in report["forward"]]}):
        with pytest.raises(AssertionError):
            compare_reports({**report, **other}, report)


def test_files_import_nothing_but_torch_and_transformers():
    allowed = {"__future__", "copy", "dataclasses", "enum", "inspect", "re", "torch", "transformers"}
    for path in code_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom):
                flat = node.level == 1 and node.module and "." not in node.module
                assert flat or (not node.level and node.module.split(".")[0] in allowed), path
