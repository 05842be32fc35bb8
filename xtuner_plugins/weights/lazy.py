"""Tensors that stay on disk until somebody reads a part of them.

Every format that this project reads stores a tensor as contiguous runs of bytes: one run in a safetensors or ``.pth``
file, one run per rank in a DeepSpeed directory. Every key mapping (fused qkv to q, k and v; InternLM2's grouped
``wqkv``; padding rows) only moves whole rows. So a tensor here is a description of bytes, a rearrangement is a new
description, and memory holds one block at a time::

    fused qkv [3D, D]   |----- q rows -----|----- k rows -----|----- v rows -----|      one run in one file
    k_proj    [D, D]                       |------------------|                         .rows(D, 2 * D)
    back      [3D, D]   Joined([q, k, v], shape)                                        three runs, read in order

Reading uses ``pread`` into a buffer and no memory map: mapped pages count as resident memory of the process, and a
16 GB checkpoint must pass through 2 GiB.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

BLOCK_BYTES = 2 * 2**20  # stays in the cache between reading, merging, casting and writing
_PREAD_LIMIT = 2**30  # Linux moves at most 0x7ffff000 bytes per call


class LazyTensor:
    """A tensor of known dtype and shape whose numbers are read on demand.

    Attributes:
        dtype: torch dtype of the numbers as stored.
        shape: tuple of ints, row-major (contiguous) layout.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor in its stored dtype."""
        return self.numel * self.dtype.itemsize

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        """Elements ``[start, stop)`` of the row-major tensor: a 1-D CPU tensor of ``self.dtype`` in fresh memory."""
        raise NotImplementedError

    def read(self) -> torch.Tensor:
        """The whole tensor, ``self.shape``, on the CPU, owned by the caller."""
        return self.read_flat(0, self.numel).view(self.shape)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Element ranges ``(start, stop)`` that cover the tensor in order, each at most ``BLOCK_BYTES`` as stored.

        A range holds whole rows where a row fits, because a computed tensor makes whole rows.
        """
        width = math.prod(self.shape[1:])
        step = max(1, BLOCK_BYTES // self.dtype.itemsize)
        if 0 < width <= step:
            step -= step % width
        for start in range(0, self.numel, step):
            yield start, min(start + step, self.numel)

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Rows ``[start, stop)`` along dimension 0, still lazy."""
        assert self.shape and 0 <= start <= stop <= self.shape[0], (self.shape, start, stop)
        row = math.prod(self.shape[1:])
        return _Window(self, start * row, (stop - start, *self.shape[1:]))

    def reshape(self, shape: Sequence[int]) -> LazyTensor:
        """The same elements under another shape, still lazy."""
        shape = tuple(shape)
        assert math.prod(shape) == self.numel, (self.shape, shape)
        return self if shape == self.shape else _Window(self, 0, shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.dtype).removeprefix('torch.')}, {list(self.shape)})"


class FileTensor(LazyTensor):
    """One contiguous run of little-endian numbers in a file."""

    def __init__(self, path: str | Path, offset: int, dtype: torch.dtype, shape: Sequence[int]):
        self.path, self.offset, self.dtype, self.shape = Path(path), offset, dtype, tuple(shape)

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        size = self.dtype.itemsize
        buffer = torch.empty((stop - start) * size, dtype=torch.uint8)
        view, offset, done = memoryview(buffer.numpy()), self.offset + start * size, 0
        fd = os.open(self.path, os.O_RDONLY)
        try:
            while done < len(view):
                got = os.preadv(fd, [view[done : done + _PREAD_LIMIT]], offset + done)
                if got == 0:
                    raise ValueError(
                        f"{self.path} ends after {offset + done} bytes although its header promises more: the file is "
                        "cut off; copy or download it again"
                    )
                done += got
        finally:
            os.close(fd)
        return buffer.view(self.dtype)


class MemoryTensor(LazyTensor):
    """A tensor in memory (a fresh projector, new token rows)."""

    def __init__(self, tensor: torch.Tensor):
        self._flat = tensor.detach().cpu().contiguous().view(-1)
        self.dtype, self.shape = tensor.dtype, tuple(tensor.shape)

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        return self._flat[start:stop].clone()


class _Window(LazyTensor):
    def __init__(self, source: LazyTensor, offset: int, shape: tuple[int, ...]):
        if isinstance(source, _Window):  # keep chains flat
            source, offset = source._source, source._offset + offset
        self._source, self._offset = source, offset
        self.dtype, self.shape = source.dtype, shape

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        return self._source.read_flat(self._offset + start, self._offset + stop)


class Joined(LazyTensor):
    """Several tensors of one dtype, read one after the other as one.

    Args:
        parts: the pieces in order.
        shape: of the whole; may hold fewer elements than the parts together (DeepSpeed pads the last partition).
    """

    def __init__(self, parts: Sequence[LazyTensor], shape: Sequence[int]):
        assert parts, "a joined tensor needs parts"
        assert len({p.dtype for p in parts}) == 1, [p.dtype for p in parts]
        self._parts, self.dtype, self.shape = list(parts), parts[0].dtype, tuple(shape)
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + part.numel)
        assert self._starts[-1] >= self.numel, (self._starts[-1], self.shape)

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        pieces = [part.read_flat(a, b) for part, a, b in self._pieces(start, stop)]
        return pieces[0] if len(pieces) == 1 else torch.cat([torch.empty(0, dtype=self.dtype), *pieces])

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[LazyTensor, int, int]]:
        for part, first in zip(self._parts, self._starts[:-1], strict=True):
            a, b = max(start, first), min(stop, first + part.numel)
            if a < b:
                yield part, a - first, b - first


class Computed(LazyTensor):
    """A tensor computed in blocks of rows as it is read (a merged adapter).

    Args:
        make_rows: ``make_rows(start, stop)`` returns rows ``[start, stop)`` along dimension 0.
        dtype: of what ``make_rows`` returns.
        shape: of the whole.
    """

    def __init__(self, make_rows, dtype: torch.dtype, shape: Sequence[int]):
        self._make_rows, self.dtype, self.shape = make_rows, dtype, tuple(shape)

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        width = math.prod(self.shape[1:])
        first, last = start // width, -(-stop // width)
        rows = self._make_rows(first, last)
        assert rows.dtype == self.dtype, (rows.dtype, self.dtype)
        return rows.reshape(-1)[start - first * width : stop - first * width]


class Cast(LazyTensor):
    """The same numbers in another dtype, cast as they are read.

    Args:
        source: the numbers.
        dtype: the dtype wanted.
        finite: reading NaN or infinity (after the cast) raises ``FloatingPointError``.
    """

    def __init__(self, source: LazyTensor, dtype: torch.dtype, finite: bool = False):
        self._source, self.dtype, self.shape, self._finite = source, dtype, source.shape, finite

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        block = self._source.read_flat(start, stop)
        if self._finite and block.is_floating_point() and block.numel():
            # Casting keeps order and NaN, so minimum and maximum speak for the whole block.
            if not torch.stack(block.aminmax()).to(self.dtype).isfinite().all():
                raise FloatingPointError("holds NaN or infinity")
        return block.to(self.dtype)


def cast(tensor: LazyTensor, dtype: torch.dtype | None) -> LazyTensor:
    """``tensor`` itself when it has the dtype already, or None is given."""
    return tensor if dtype in (None, tensor.dtype) else Cast(tensor, dtype)
