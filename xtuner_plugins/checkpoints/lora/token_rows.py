"""Rows of single tokens trained beside LoRA: PEFT's ``trainable_token_indices``, laid into embedding and head.

PEFT holds the trained rows by themselves, next to the frozen matrix::

    embed_tokens.token_adapter.trainable_tokens_delta.default    [n, D]    a PEFT directory leaves .default out
    embed_tokens.token_adapter.base_layer.weight                 [V, D]    the base has it

In spite of its name the delta is the rows themselves. Which rows, the LoRA config says: a list (of the input embedding)
or ``{'embed_tokens': [...], 'lm_head': [...]}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..io.reader import CheckpointError, read_json
from ..io.tensors import Computed, LazyTensor

BASE_LAYER = ".token_adapter.base_layer."
ORIGINAL = ".token_adapter.trainable_tokens_original"
_KEY = re.compile(r"(?P<layer>.+)\.token_adapter\.trainable_tokens_delta(?:\.default)?")
_EMBEDDINGS = ("embed_tokens", "embeddings", "wte", "tok_embeddings")


def split_key(name: str) -> str | None:
    """The layer that a tensor of trained rows belongs to; None for any other tensor."""
    match = _KEY.fullmatch(name)
    return match["layer"] if match else None


def indices_of(config, layer: str, where: str) -> list[int]:
    """The rows of a layer that a LoRA config trains.

    Args:
        config: LoRA settings.
        layer: name of the layer inside its model.
        where: what to call the checkpoint in errors.

    Raises:
        CheckpointError: the config names no rows for the layer.
    """
    named = getattr(config, "trainable_token_indices", None)
    leaf = layer.rpartition(".")[2]
    if isinstance(named, Mapping):
        found = next((rows for name, rows in named.items() if layer == name or layer.endswith("." + name)), None)
    else:
        found = named if leaf in _EMBEDDINGS else None
    if found is None:
        raise CheckpointError(
            f"{where} holds trained rows of {layer}, but the LoRA settings name none (trainable_token_indices = "
            f"{named}); give the config that it was trained with"
        )
    return [int(row) for row in found]


def laid(base: LazyTensor, rows: LazyTensor, indices: list[int], name: str) -> LazyTensor:
    """The matrix with trained rows in the places of its own, lazily.

    Args:
        base: ``[V, D]``.
        rows: ``[n, D]``.
        indices: n different numbers below V.
        name: of the matrix, for errors.

    Raises:
        CheckpointError: shapes or numbers that don't fit.
    """
    if rows.shape != (len(indices), *base.shape[1:]):
        raise CheckpointError(
            f"{name}: the trained rows are {list(rows.shape)}, but {len(indices)} rows of {list(base.shape)} are "
            "named; checkpoint, config and base don't belong together"
        )
    if len(set(indices)) != len(indices) or not all(0 <= index < base.shape[0] for index in indices):
        raise CheckpointError(
            f"{name}: the rows {sorted(indices)[:3]} to {max(indices)} are not different rows of {base.shape[0]}"
        )
    dtype = torch.promote_types(base.dtype, rows.dtype)
    places = {index: n for n, index in enumerate(indices)}

    def make_rows(start: int, stop: int) -> torch.Tensor:
        block = torch.empty(stop - start, *base.shape[1:], dtype=dtype).copy_(base.rows(start, stop).read())
        for index, n in places.items():
            if start <= index < stop:
                block[index - start] = rows.rows(n, n + 1).read()[0]
        return block

    return Computed(make_rows, dtype, base.shape)


def trained_on_tied(adapter_config: Mapping, embedding: LazyTensor, head: LazyTensor, indices: list[int]) -> bool:
    """Whether a PEFT adapter's rows belong to the head as well, because its model had one matrix for both.

    A base here always holds two. The adapter itself doesn't say, but the model that it names does, if it is at hand.

    Raises:
        CheckpointError: nothing tells.
    """
    named = adapter_config.get("base_model_name_or_path") or ""
    path = Path(named) / "config.json"
    if named and path.is_file():
        fields = read_json(path)
        if "llm_config" in fields or "text_config" in fields:
            fields = {**fields, **(fields.get("llm_config") or fields.get("text_config"))}
        return bool(fields.get("tie_word_embeddings", False))
    same = all(torch.equal(embedding.rows(n, n + 1).read(), head.rows(n, n + 1).read()) for n in indices)
    if same:
        raise CheckpointError(
            f"the adapter trained rows of the embedding, and {named or 'the model that it was trained on'} is not here "
            "to say whether its head is the same matrix; put that model's directory into base_model_name_or_path of "
            "adapter_config.json"
        )
    return False
