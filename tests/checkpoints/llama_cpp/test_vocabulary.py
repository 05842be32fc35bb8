"""Tokens of a GGUF file."""

import json
import shutil

import gguf
import pytest

from xtuner_plugins.checkpoints.errors import CheckpointError
from xtuner_plugins.checkpoints.llama_cpp.vocabulary import add_vocabulary
from xtuner_plugins.checkpoints.loader import load_tokenizer


def fields(writer):
    return {key: value.value for key, value in writer.kv_data[0].items()}


def test_tokens_in_order_with_their_kinds(toy_base):
    tokenizer, writer = load_tokenizer(toy_base), gguf.GGUFWriter(None, "qwen2")
    num_rows = len(tokenizer) + 3
    add_vocabulary(writer, toy_base, num_rows, "internvl2_5")
    found = fields(writer)
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == num_rows and found["tokenizer.ggml.pre"] == "qwen2"
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert set(kinds[len(tokenizer) :]) == {gguf.TokenType.UNUSED}
    assert kinds[tokens.index("<img>")] == gguf.TokenType.CONTROL and kinds[0] == gguf.TokenType.NORMAL
    assert found["tokenizer.ggml.eos_token_id"] == tokens.index("<|im_end|>")
    assert found["tokenizer.chat_template"] == tokenizer.chat_template


def test_refused(toy_base, tmp_path):
    with pytest.raises(CheckpointError, match="has no row in an embedding of 10 rows"):
        add_vocabulary(gguf.GGUFWriter(None, "qwen2"), toy_base, 10, "internvl2_5")
    shutil.copytree(toy_base, tmp_path / "base")
    path = tmp_path / "base" / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\w+"}
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(CheckpointError, match="isn't a byte-level BPE of Qwen2's, Qwen3's or Llama 3's kind"):
        add_vocabulary(gguf.GGUFWriter(None, "qwen2"), tmp_path / "base", 3000, "internvl2_5")
