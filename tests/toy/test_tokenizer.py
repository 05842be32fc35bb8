"""The toy tokenizer: a Qwen2 tokenizer, in each of its files, and always the same."""

import hashlib
import json
import os
import subprocess
import sys

from transformers import AutoTokenizer, Qwen2Tokenizer, Qwen2TokenizerFast

from xtuner_plugins.toy.language import corpus
from xtuner_plugins.toy.tokenizer import SPECIAL_TOKENS, build_tokenizer

MIXED = "Read 4071 in the sign!\n\n你好，图中有3个★ — naïve café\t{'a': 1}  <img> 🙂 don't <|im_start|>user"


def test_it_is_a_qwen2_tokenizer_in_every_file_and_always_the_same(tmp_path):
    """A changed word of the corpus changes tokenizer and results; another process writes the same bytes."""
    directory, again = build_tokenizer(tmp_path / "a"), tmp_path / "b"
    fast, slow = AutoTokenizer.from_pretrained(directory), Qwen2Tokenizer.from_pretrained(directory)
    assert isinstance(fast, Qwen2TokenizerFast)
    assert (fast.eos_token, fast.pad_token) == ("<|im_end|>", "<|endoftext|>")
    ids = fast(MIXED)["input_ids"]
    assert slow(MIXED)["input_ids"] == ids and fast.decode(ids) == MIXED
    assert {"4", "0", "7", "1", *SPECIAL_TOKENS[1:2]} <= set(fast.tokenize(MIXED))
    for word in (" .", " redcircle", " purplestar", " number", " sign"):  # one cell is one token
        assert len(fast.tokenize(word)) == 1, word
    state = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    assert all(isinstance(merge, str) for merge in state["model"]["merges"])  # which older releases read

    assert hashlib.sha256("\n".join(corpus()).encode()).hexdigest().startswith("fe29588bc3527ac8")
    code = f"from xtuner_plugins.toy.tokenizer import build_tokenizer as b; b({str(again)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert [(again / file.name).read_bytes() == file.read_bytes() for file in directory.iterdir()] == [True] * 5
