import json
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer, Qwen2Tokenizer, Qwen2TokenizerFast

from xtuner_plugins.toy.tokenizer import SPECIAL_TOKENS, build_tokenizer

MIXED = "Read 407 in the sign!\n\n你好，图中有3个★ — naïve café\t{'a': 1}  <img> 🙂 don't"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(directory):
    return AutoTokenizer.from_pretrained(directory)


def test_loads_as_qwen2_with_its_special_tokens(tokenizer):
    assert isinstance(tokenizer, Qwen2TokenizerFast)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    first = len(tokenizer) - 3
    assert ids == [first, first + 1, first + 2]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer("<|im_start|>user")["input_ids"][0] == ids[1]


def test_slow_and_fast_give_the_same_ids_and_the_text_back(directory, tokenizer):
    slow = Qwen2Tokenizer.from_pretrained(directory)
    assert slow.tokenize(MIXED) == tokenizer.tokenize(MIXED)
    assert slow(MIXED)["input_ids"] == tokenizer(MIXED)["input_ids"]
    assert tokenizer.decode(tokenizer(MIXED)["input_ids"]) == MIXED
    assert tokenizer.tokenize("4071") == ["4", "0", "7", "1"]


def test_merges_are_strings_and_agree_between_the_files(directory):
    state = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    lines = (directory / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert all(isinstance(merge, str) for merge in state["model"]["merges"])
    assert lines[0].startswith("#version") and lines[1:] == state["model"]["merges"]
    assert json.loads((directory / "vocab.json").read_text(encoding="utf-8")) == state["model"]["vocab"]


def test_another_process_writes_the_same_bytes(directory, tmp_path):
    code = f"from xtuner_plugins.toy.tokenizer import build_tokenizer as b; b({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    for file in sorted(directory.iterdir()):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
