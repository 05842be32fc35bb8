"""Writes weights: shards streamed tensor by tensor, blocks of several tensors side by side."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from .reader import DTYPE_NAMES
from .tensors import BLOCK_BYTES, LazyTensor, Run, Scratch, read_into

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
COPY_BYTES = 16 * 2**20  # of one job; the kernel needs no buffer for it
# Each holds a block or two; more than a few gain nothing on a disk.
NUM_WORKERS = max(1, min(4, os.cpu_count() or 1))


def parse_size(text: str | int) -> int:
    """Bytes of ``"4GB"``, ``"500MB"``, ``"2GiB"`` or a plain number.

    Raises:
        ValueError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?I?B?)\s*", str(text).upper())
    if not match or match[2] not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a size; write it like 4GB, 500MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def resolve_dtype(name: str | None) -> torch.dtype | None:
    """A torch dtype by name, or None.

    Raises:
        ValueError: not one that weights are written in.
    """
    if name is not None and name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
    return DTYPES[name] if name else None


def format_size(num_bytes: int) -> str:
    """``4.1 GB`` and the like, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


def write_json(path: Path, value: Mapping, default: Callable | None = None) -> None:
    """Indented UTF-8 JSON with a final line break; ``default`` turns other objects into plain values."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2, default=default) + "\n", encoding="utf-8")


def plan_shards(tensors: Mapping[str, LazyTensor], max_shard_size: int) -> list[list[str]]:
    """Names of each shard, in order; a tensor larger than the limit gets a shard of its own."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.nbytes
        if shards[-1] and used + size > max_shard_size:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def write_weights(
    stage: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    max_shard_size: int,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> list[Path]:
    """Streams tensors into ``model.safetensors`` or shards, the index last.

    Args:
        stage: directory to write into.
        tensors: by name, in the dtypes to write.
        max_shard_size: bytes of data a shard.
        advance: called with the number of bytes after each block, for a progress bar.

    Returns:
        The weight files in order (without the index).
    """
    shards = plan_shards(tensors, max_shard_size)
    single = len(shards) == 1
    files, weight_map = [], {}
    for number, names in enumerate(shards, 1):
        file = stage / ("model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        write_single(file, {n: tensors[n] for n in names}, advance)
        files.append(file)
        weight_map.update(dict.fromkeys(names, file.name))
    if not single:
        total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        index = {"metadata": total, "weight_map": dict(sorted(weight_map.items()))}
        write_json(stage / "model.safetensors.index.json", index)
    return files


def write_single(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Streams tensors into one safetensors file; arguments as for ``write_weights``."""
    # Widest dtype first keeps every tensor aligned to its width. Older transformers die without {"format": "pt"}.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered:
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    with open(path, "wb", buffering=0) as file, _one_thread_each(), ThreadPoolExecutor(NUM_WORKERS) as pool:
        fd = file.fileno()
        _write_at(fd, memoryview(len(text).to_bytes(8, "little") + text), 0)
        file.truncate(data + offset)
        blocks = _Blocks(fd)
        pending: deque[Future] = deque()
        try:
            for job, *args in _jobs(ordered, data):
                pending.append(pool.submit(getattr(blocks, job), *args))
                if len(pending) > 2 * NUM_WORKERS:
                    advance(pending.popleft().result())
            while pending:
                advance(pending.popleft().result())
        except BaseException:
            for future in pending:
                future.cancel()
            raise


def _jobs(ordered, offset: int) -> Iterator[tuple]:
    """What to do for each stretch of a file: bytes that lie somewhere as they are wanted are copied, the rest computed.

    Neighbors that are neighbors in their source too become one copy.
    """
    waiting: tuple[Run, int] | None = None
    for _, tensor in ordered:
        runs = tensor.runs(0, tensor.numel)
        for run in runs or ():
            if waiting and (waiting[0].path, waiting[0].offset + waiting[0].num_bytes) == (run.path, run.offset):
                waiting = (Run(run.path, waiting[0].offset, waiting[0].num_bytes + run.num_bytes), waiting[1])
            else:
                yield from _copies(waiting)
                waiting = (run, offset)
            offset += run.num_bytes
        if runs is None:
            yield from _copies(waiting)
            waiting = None
            for start, stop in tensor.spans():
                yield "compute", tensor, start, stop, offset + start * tensor.dtype.itemsize
            offset += tensor.nbytes
    yield from _copies(waiting)


def _copies(waiting: tuple[Run, int] | None) -> Iterator[tuple]:
    if waiting is not None:
        run, offset = waiting
        for done in range(0, run.num_bytes, COPY_BYTES):
            size = min(COPY_BYTES, run.num_bytes - done)
            yield "copy", Run(run.path, run.offset + done, size), offset + done


class _Blocks:
    """Fills stretches of one open file, from several threads."""

    def __init__(self, fd: int):
        self._fd = fd
        self._scratch = Scratch()
        # Writers of one file exclude one another in the kernel too, where they would spin.
        self._lock = threading.Lock()
        self._in_kernel = hasattr(os, "copy_file_range")

    def compute(self, tensor: LazyTensor, start: int, stop: int, offset: int) -> int:
        """Reads and writes the elements ``[start, stop)``; returns the bytes written."""
        self._scratch.reset()
        block = tensor.read_flat(start, stop, self._scratch).contiguous().view(torch.uint8)
        with self._lock:
            _write_at(self._fd, memoryview(block.numpy()), offset)
        return block.numel()

    def copy(self, run: Run, offset: int) -> int:
        """Copies bytes from file to file, inside the kernel where it can; returns their number."""
        source = os.open(run.path, os.O_RDONLY)
        try:
            with self._lock:
                done = self._copy_in_kernel(source, run, offset) if self._in_kernel else 0
            self._scratch.reset()
            buffer = self._scratch.empty(min(BLOCK_BYTES, run.num_bytes - done), torch.uint8)
            while done < run.num_bytes:
                view = memoryview(buffer.numpy())[: run.num_bytes - done]
                read_into(source, view, run.offset + done, run.path)
                _write_at(self._fd, view, offset + done)
                done += len(view)
        finally:
            os.close(source)
        return run.num_bytes

    def _copy_in_kernel(self, source: int, run: Run, offset: int) -> int:
        """The bytes that it managed; 0 between file systems that can't."""
        done = 0
        while done < run.num_bytes:
            try:
                got = os.copy_file_range(source, self._fd, run.num_bytes - done, run.offset + done, offset + done)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                    raise
                self._in_kernel = False
                return done
            if got == 0:  # some file systems, and the end of a file that was cut off: reading will tell
                return done
            done += got
        return done


def _write_at(fd: int, view: memoryview, offset: int) -> None:
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


@contextmanager
def _one_thread_each():
    """Blocks are worked on side by side; a pool of threads inside each would only get in its own way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
