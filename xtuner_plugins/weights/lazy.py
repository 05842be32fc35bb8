"""Tensors that stay on disk until somebody reads rows of them.

A safetensors or ``.pth`` file stores a tensor as one run of bytes, DeepSpeed as one run per rank; key mappings (fused
qkv to q, k and v; InternLM2's grouped ``wqkv``; padding rows) only move whole rows. So a tensor here is a dtype, a
shape and a function that reads rows, and memory holds one block at a time::

    fused qkv [3D, D]   |----- q rows -----|----- k rows -----|----- v rows -----|      one run in one file
    k_proj    [D, D]                       |------------------|                         .rows(D, 2 * D)
    back      [3D, D]   Joined([q, k, v])                                               three runs, read in order

Files are read in pieces, not through a memory map, whose pages would count as memory of the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from .errors import CheckpointError

BLOCK_BYTES = 2 * 2**20  # stays in the cache between reading, merging, casting and writing


class LazyTensor:
    """A tensor whose rows are read on demand. A tensor without dimensions has one row.

    Args:
        dtype: of the numbers.
        shape: of the whole.
        make: ``make(start, stop)`` returns rows ``[start, stop)`` along dimension 0 as a contiguous CPU tensor of any
            shape, in memory of its own.
    """

    def __init__(self, dtype: torch.dtype, shape: Sequence[int], make: Callable[[int, int], torch.Tensor]):
        self.dtype, self.shape, self._make = dtype, tuple(shape), make
        self.numel = math.prod(self.shape)
        self.nbytes = self.numel * dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows ``[start, stop)``, by default all, on the CPU, owned by the caller."""
        if not self.shape:
            return self._make(0, 1).view(())
        stop = self.shape[0] if stop is None else stop
        return self._make(start, stop).view(stop - start, *self.shape[1:])

    def spans(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that cover the tensor in order, of at most ``BLOCK_BYTES`` each where a row fits."""
        count = self.shape[0] if self.shape else 1
        step = max(1, BLOCK_BYTES // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))
        for start in range(0, count, step):
            yield start, min(start + step, count)

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Rows ``[start, stop)``, still lazy."""
        assert self.shape and 0 <= start <= stop <= self.shape[0], (self.shape, start, stop)
        return LazyTensor(self.dtype, (stop - start, *self.shape[1:]), lambda a, b: self.read(start + a, start + b))

    def reshape(self, shape: Sequence[int]) -> LazyTensor:
        """The same elements under another shape, still lazy."""
        assert math.prod(shape) == self.numel, (self.shape, shape)
        new, own = math.prod(shape[1:]), max(1, math.prod(self.shape[1:]))

        def make(start: int, stop: int) -> torch.Tensor:
            first = start * new // own
            flat = self.read(first, -(-stop * new // own)).view(-1)
            return flat[start * new - first * own : stop * new - first * own]

        return LazyTensor(self.dtype, shape, make)

    def __repr__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


class FileTensor(LazyTensor):
    """One contiguous run of little-endian numbers in a file, from a byte ``offset`` on."""

    def __init__(self, path: str | Path, offset: int, dtype: torch.dtype, shape: Sequence[int]):
        row = math.prod(shape[1:]) * dtype.itemsize

        def make(start: int, stop: int) -> torch.Tensor:
            buffer = torch.empty((stop - start) * row, dtype=torch.uint8)
            with open(path, "rb") as file:
                file.seek(offset + start * row)
                if file.readinto(memoryview(buffer.numpy())) < len(buffer):
                    raise ValueError(f"{path} ends after {file.tell()} bytes, its header promises more; copy it again")
            return buffer.view(dtype)

        super().__init__(dtype, shape, make)


class MemoryTensor(LazyTensor):
    """A tensor in memory (a fresh projector, new token rows)."""

    def __init__(self, tensor: torch.Tensor):
        held = tensor.detach().cpu().contiguous()
        rows = held if held.dim() else held.view(1)
        super().__init__(tensor.dtype, tensor.shape, lambda start, stop: rows[start:stop].clone())


class Joined(LazyTensor):
    """Tensors of one dtype and width, joined along dimension 0."""

    def __init__(self, parts: Sequence[LazyTensor]):
        assert len({(part.dtype, part.shape[1:]) for part in parts}) == 1, parts
        parts, rest = list(parts), parts[0].shape[1:]

        def make(start: int, stop: int) -> torch.Tensor:
            pieces, first = [torch.empty(0, *rest, dtype=self.dtype)], 0
            for part in parts:
                a, b = max(start - first, 0), min(stop - first, part.shape[0])
                pieces += [part.read(a, b)] if a < b else []
                first += part.shape[0]
            return pieces[1] if len(pieces) == 2 else torch.cat(pieces)

        super().__init__(parts[0].dtype, (sum(part.shape[0] for part in parts), *rest), make)


def cast(source: LazyTensor, dtype: torch.dtype | None, *, finite: str | None = None) -> LazyTensor:
    """The same numbers in another dtype, cast as they are read; the tensor itself where that changes nothing.

    Args:
        source: the numbers.
        dtype: the dtype wanted; None keeps it.
        finite: a name, with which reading NaN or infinity (after the cast) raises `CheckpointError`.
    """
    dtype = dtype or source.dtype

    def make(start: int, stop: int) -> torch.Tensor:
        block = source.read(start, stop)
        # Casting keeps order and NaN, so minimum and maximum speak for the whole block.
        if finite and block.is_floating_point() and block.numel():
            if not torch.stack(block.aminmax()).to(dtype).isfinite().all():
                remedy = "take other weights (of a run: an earlier checkpoint) or another --dtype"
                raise CheckpointError(f"{finite} holds NaN or infinity as {dtype}; {remedy}")
        return block.to(dtype)

    return LazyTensor(dtype, source.shape, make) if finite or dtype != source.dtype else source
