"""What a user is told who has no llama.cpp, or no files for it; tests/checkpoints/llama_cpp/test_convert.py runs it."""

import sys

import pytest

from xtuner_plugins.checkpoints.errors import CheckpointError
from xtuner_plugins.inference.llama_cpp import LlamaCpp


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(CheckpointError, match="llama.cpp isn't installed here: pip install"):
        LlamaCpp(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_without_files_and_with_others(tmp_path):
    pytest.importorskip("xllamacpp")
    with pytest.raises(CheckpointError, match="a.gguf does not exist"):
        LlamaCpp(tmp_path / "a.gguf", tmp_path / "b.gguf")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_text("no weights")
    with pytest.raises(CheckpointError, match="llama.cpp can't open .*a.gguf"):
        LlamaCpp(tmp_path / "a.gguf", tmp_path / "b.gguf")
