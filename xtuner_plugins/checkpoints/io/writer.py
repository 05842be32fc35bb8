"""Writes weights: shards are streamed tensor by tensor, several blocks in parallel."""

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

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
COPY_BYTES = 16 * 2**20  # per copy job, which needs no buffer
# Each worker holds a block or two; more of them gain nothing on a disk.
NUM_WORKERS = max(1, min(4, os.cpu_count() or 1))


def parse_size(text: str | int) -> int:
    """Bytes of ``"4GB"``, ``"500MB"``, ``"2GiB"`` or a plain number.

    Raises:
        ValueError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(?:([KMGT])(I?)B|B?)\s*", str(text).upper())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a size; write it like 4GB, 500MB or 2GiB")
    unit = (1024 if match[3] else 1000) ** (" KMGT".index(match[2]) if match[2] else 0)
    return int(float(match[1]) * unit)


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


def json_text(value: Mapping, default: Callable | None = None) -> str:
    """Indented JSON; ``default`` turns other objects into plain values."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=default) + "\n"


def write_json(path: Path, value: Mapping, default: Callable | None = None) -> None:
    """Writes ``json_text`` as UTF-8."""
    path.write_text(json_text(value, default), encoding="utf-8")


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
        max_shard_size: most bytes of data per shard; a tensor larger than that gets a shard of its own.
        advance: called with the number of bytes after each block, for a progress bar.

    Returns:
        The weight files in order (without the index).

    Raises:
        FloatingPointError: a tensor that must be finite isn't; the message begins with its name.
    """
    shards: list[dict[str, LazyTensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > max_shard_size:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    files, weight_map = [], {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_single(stage / name, shard, advance)
        files.append(stage / name)
        weight_map.update(dict.fromkeys(shard, name))
    if len(shards) > 1:
        total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        index = {"metadata": total, "weight_map": dict(sorted(weight_map.items()))}
        write_json(stage / "model.safetensors.index.json", index)
    return files


def write_single(
    path: Path, tensors: Mapping[str, LazyTensor], advance: Callable[[int], None] = lambda num_bytes: None
) -> None:
    """Streams tensors into one safetensors file; arguments and errors as for ``write_weights``."""
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
            for name, tensor in ordered:
                for job in blocks.jobs(name, tensor, data + header[name]["data_offsets"][0]):
                    pending.append(pool.submit(*job))
                    if len(pending) > 2 * NUM_WORKERS:
                        advance(pending.popleft().result())
            while pending:
                advance(pending.popleft().result())
        except BaseException:
            for future in pending:
                future.cancel()
            raise


class _Blocks:
    """Fills stretches of one open file, from several threads."""

    def __init__(self, fd: int):
        self._fd = fd
        self._scratch = Scratch()
        # The kernel lets one thread at a time write to a file, too, but makes the others spin.
        self._lock = threading.Lock()
        self._in_kernel = hasattr(os, "copy_file_range")

    def jobs(self, name: str, tensor: LazyTensor, offset: int) -> Iterator[tuple]:
        """Functions and arguments that write one tensor: bytes on disk are copied, everything else is computed."""
        runs = tensor.runs(0, tensor.numel)
        if runs is None:
            for start, stop in tensor.spans():
                yield self.compute, name, tensor, start, stop, offset + start * tensor.dtype.itemsize
        for run in runs or ():
            for done in range(0, run.num_bytes, COPY_BYTES):
                yield self.copy, Run(run.path, run.offset + done, min(COPY_BYTES, run.num_bytes - done)), offset + done
            offset += run.num_bytes

    def compute(self, name: str, tensor: LazyTensor, start: int, stop: int, offset: int) -> int:
        """Reads and writes the elements ``[start, stop)``; returns the number of bytes written."""
        self._scratch.reset()
        try:
            block = tensor.read_flat(start, stop, self._scratch).contiguous().view(torch.uint8)
        except FloatingPointError as error:
            raise FloatingPointError(f"{name} {error}") from None
        with self._lock:
            _write_at(self._fd, memoryview(block.numpy()), offset)
        return block.numel()

    def copy(self, run: Run, offset: int) -> int:
        """Copies bytes from file to file, inside the kernel where possible; returns their number."""
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
        """The number of bytes copied; fewer than asked for between file systems that can't."""
        done = 0
        while done < run.num_bytes:
            try:
                got = os.copy_file_range(source, self._fd, run.num_bytes - done, run.offset + done, offset + done)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                    raise
                self._in_kernel = False
                return done
            if got == 0:  # some file systems, or the file was cut off: ``read_into`` finds out
                return done
            done += got
        return done


def _write_at(fd: int, view: memoryview, offset: int) -> None:
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


@contextmanager
def _one_thread_each():
    """Limits torch to one thread per block: blocks run in parallel already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
