"""Compares checkpoints bit by bit: weights and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from xtuner_plugins.weights.lazy import LazyTensor
from xtuner_plugins.weights.reading import CheckpointError, load_pickle

COMPARED = ("state_dict", "optimizer")  # of a plain file; of a DeepSpeed directory, everything


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Names of the tensors that differ in any bit between two checkpoints, or are in one only.

    Args:
        one, other: Plain files, or directories as DeepSpeed writes them.

    Raises:
        CheckpointError: One can't be read, or holds no tensor.
    """
    left, right = _contents(one), _contents(other)
    for path, found in ((one, left), (other, right)):
        if not found:
            raise CheckpointError(f"{path} holds no tensor of weights or optimizer")
    names = sorted(left.keys() | right.keys())
    return [name for name in names if name not in left or name not in right or not torch.equal(left[name], right[name])]


def _contents(path: Path) -> dict[str, torch.Tensor]:
    if path.is_dir():
        files = sorted(path.rglob("*.pt"))
        return {"/".join((file.name, *at)): tensor for file in files for at, tensor in _tensors(load_pickle(file))}
    saved = load_pickle(path)
    return {"/".join((key, *at)): tensor for key in COMPARED for at, tensor in _tensors(saved.get(key))}


def _tensors(content: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Every tensor in a nested value, with its place."""
    if isinstance(content, LazyTensor):
        yield at, content.read()
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, (*at, str(key)))
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from _tensors(value, (*at, str(index)))
