"""The vocabulary of a GGUF file: byte-level BPE tokenizers that llama.cpp splits text for as they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from ..errors import CheckpointError
from ..tokenizer_files import load_tokenizer, stop_token_ids
from .language_model import OTHER_WAY

# llama.cpp's name of the rule that splits a text before merging, by the pattern in tokenizer.json.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITTING = {
    _WORDS + r"|\p{N}" + _REST: "qwen2",
    _WORDS + r"|\p{N}{1,3}" + _REST: "llama-bpe",
}


def add_vocabulary(writer: gguf.GGUFWriter, directory: Path, num_rows: int, template: str) -> None:
    """Writes tokens, merges, special tokens and the chat template of a model directory.

    Args:
        writer: of the file.
        directory: with the tokenizer.
        num_rows: rows of the embedding; those without a token become unused tokens.
        template: the conversation template, which decides the token that ends an answer.

    Raises:
        CheckpointError: another kind of tokenizer than byte-level BPE, or a splitting rule without a name.
    """
    tokenizer = load_tokenizer(directory)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(state, directory))
    added = {token["id"]: token for token in state["added_tokens"]}
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(by_id) >= num_rows:
        raise CheckpointError(f"{directory}: token {max(by_id)} has no row in an embedding of {num_rows} rows")
    tokens, kinds = [], []
    for number in range(num_rows):
        if number not in by_id:
            kinds.append(gguf.TokenType.UNUSED)
        elif number not in added:
            kinds.append(gguf.TokenType.NORMAL)
        else:
            kinds.append(gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED)
        tokens.append(by_id.get(number, f"[PAD{number}]"))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = state["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(stop_token_ids(tokenizer, template)[0])
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    starts = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(starts)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _splitting(state: dict[str, Any], directory: Path) -> str:
    """llama.cpp's name of the rule in a ``tokenizer.json``."""
    before = state.get("pre_tokenizer") or {}
    parts = before.get("pretokenizers", [before])
    pattern = next((part["pattern"].get("Regex") for part in parts if part.get("type") == "Split"), None)
    is_byte_level = state["model"].get("type") == "BPE" and any(part.get("type") == "ByteLevel" for part in parts)
    if not is_byte_level or pattern not in SPLITTING:
        raise CheckpointError(
            f"{directory}: its tokenizer isn't a byte-level BPE of Qwen2's, Qwen3's or Llama 3's kind, the only ones "
            f"that are written here; {OTHER_WAY}"
        )
    return SPLITTING[pattern]
