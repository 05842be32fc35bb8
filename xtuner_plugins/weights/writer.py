"""Writes weights: shards are streamed tensor by tensor, block by block."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .errors import CheckpointError
from .lazy import LazyTensor
from .reading import DTYPE_NAMES


def parse_size(text: str | int) -> int:
    """Bytes of ``4GB``, ``0.5GB``, ``2GiB`` or a plain number, in any case; `CheckpointError` for anything else."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(?:([KMGT])(I?)B|B?)", str(text).strip().upper())
    unit = (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ") if match else 0
    if not match or (size := int(float(match[1]) * unit)) < 1:
        raise CheckpointError(f"--max-shard-size {text} is no size; write 4GB, 500MB or 2GiB")
    return size


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
) -> int:
    """Streams tensors into ``model.safetensors`` or shards, the index last; returns how many.

    Args:
        stage: directory to write into.
        tensors: by name, in the dtypes to write.
        max_shard_size: most bytes of data per shard; a tensor larger than that gets a shard of its own.
        advance: called with the number of bytes after each block, for a progress bar.
    """
    shards = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(each.nbytes for each in shards[-1].values()) + tensor.nbytes > max_shard_size:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        write_single(stage / "model.safetensors", shards[0], advance)
        return 1
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_single(stage / file, shard, advance)
        weight_map |= dict.fromkeys(sorted(shard), file)
    total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    write_json(stage / "model.safetensors.index.json", {"metadata": total, "weight_map": weight_map})
    return len(shards)


def write_single(
    path: Path, tensors: Mapping[str, LazyTensor], advance: Callable[[int], None] = lambda num_bytes: None
) -> None:
    """Streams tensors into one safetensors file; arguments as for ``write_weights``."""
    # Widest dtype first keeps every tensor aligned to its width. Older transformers die without {"format": "pt"}.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = dict(dtype=DTYPE_NAMES[tensor.dtype], shape=tensor.shape, data_offsets=[start, end])
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # blocks are too small to share
    try:
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, tensor in ordered:
                for start, stop in tensor.spans():
                    block = tensor.read(start, stop).contiguous().view(-1).view(torch.uint8)
                    file.write(memoryview(block.numpy()))
                    advance(block.numel())
    finally:
        torch.set_num_threads(threads)
