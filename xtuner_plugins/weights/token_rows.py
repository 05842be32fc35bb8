"""Rows of single tokens trained beside LoRA: PEFT's ``trainable_token_indices``, laid into embedding and head.

PEFT holds the trained rows by themselves, next to the frozen matrix::

    embed_tokens.token_adapter.trainable_tokens_delta.default    [n, D]    a PEFT directory leaves .default out
    embed_tokens.token_adapter.base_layer.weight                 [V, D]    the base has it

Despite its name, ``trainable_tokens_delta`` holds the trained rows, not differences. ``trainable_token_indices`` of the
LoRA config lists them: a list (of the input embedding) or ``{'embed_tokens': [...], 'lm_head': [...]}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .lazy import LazyTensor
from .merge import ADAPTER_NAME
from .reading import CheckpointError

BASE_LAYER = ".token_adapter.base_layer."
ORIGINAL = ".token_adapter.trainable_tokens_original"
_EMBEDDINGS = ("embed_tokens", "embeddings", "wte", "tok_embeddings")


def attach(part: nn.Module, rows: Mapping[str, Sequence[int]]) -> None:
    """Makes single rows of a part trainable beside their frozen matrices, as PEFT does; other weights stay as they are.

    Args:
        part: a language model.
        rows: indices by the layer's name inside it.
    """
    from peft import LoraConfig
    from peft.utils.other import set_additional_trainable_modules

    config = LoraConfig(trainable_token_indices={layer: list(indices) for layer, indices in rows.items()})
    set_additional_trainable_modules(part, config, {}, ADAPTER_NAME)


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
    by_layer = named if isinstance(named, Mapping) else dict.fromkeys(_EMBEDDINGS, named)
    found = next((rows for name, rows in by_layer.items() if f".{layer}".endswith(f".{name}")), None)
    if found is None:
        raise CheckpointError(
            f"{where} holds trained rows of {layer}, but the LoRA settings name none (trainable_token_indices = "
            f"{named}); give the config that it was trained with"
        )
    return [int(row) for row in found]


def laid(base: LazyTensor, rows: LazyTensor, indices: list[int], name: str) -> LazyTensor:
    """The matrix with some rows replaced by trained ones, lazily.

    Args:
        base: ``[V, D]``.
        rows: ``[n, D]``.
        indices: n different row indices below V.
        name: of the matrix, for errors.

    Raises:
        CheckpointError: shapes or indices that don't fit.
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

    def make(start: int, stop: int) -> torch.Tensor:
        block = base.read(start, stop).to(dtype)
        for n, index in enumerate(indices):
            if start <= index < stop:
                block[index - start] = rows.read(n, n + 1)[0]
        return block

    return LazyTensor(dtype, base.shape, make)
