"""Writes weights: shards are streamed tensor by tensor, block by block."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .lazy import LazyTensor
from .reading import DTYPE_NAMES

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def parse_size(text: str | int) -> int:
    """Bytes of ``"4GB"``, ``"500MB"``, ``"2GiB"`` or a plain number; ``ValueError`` for anything else."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(?:([KMGT])(I?)B|B?)\s*", str(text).upper())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a size; write it like 4GB, 500MB or 2GiB")
    unit = (1024 if match[3] else 1000) ** (" KMGT".index(match[2]) if match[2] else 0)
    return int(float(match[1]) * unit)


def resolve_dtype(name: str | None) -> torch.dtype | None:
    """A torch dtype by name, None for None; ``ValueError`` for one that weights aren't written in."""
    if name not in (None, *DTYPES):
        raise ValueError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
    return DTYPES.get(name)


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
    shards = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(each.nbytes for each in shards[-1].values()) + tensor.nbytes > max_shard_size:
            shards.append({})
        shards[-1][name] = tensor
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files = dict(zip(names if len(shards) > 1 else ["model.safetensors"], shards, strict=True))
    for file, shard in files.items():
        write_single(stage / file, shard, advance)
    if len(shards) > 1:
        total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        weight_map = {name: file for file, shard in files.items() for name in sorted(shard)}
        write_json(stage / "model.safetensors.index.json", {"metadata": total, "weight_map": weight_map})
    return [stage / file for file in files]


def write_single(
    path: Path, tensors: Mapping[str, LazyTensor], advance: Callable[[int], None] = lambda num_bytes: None
) -> None:
    """Streams tensors into one safetensors file; arguments and errors as for ``write_weights``."""
    # Widest dtype first keeps every tensor aligned to its width. Older transformers die without {"format": "pt"}.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        header[name] = dict(dtype=DTYPE_NAMES[tensor.dtype], shape=tensor.shape, data_offsets=[offset, end])
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # blocks are too small to share
    try:
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in ordered:
                for start, stop in tensor.spans():
                    try:
                        block = tensor.read(start, stop).contiguous().view(-1).view(torch.uint8)
                    except FloatingPointError as error:
                        raise FloatingPointError(f"{name} {error}") from None
                    file.write(memoryview(block.numpy()))
                    advance(block.numel())
    finally:
        torch.set_num_threads(threads)
