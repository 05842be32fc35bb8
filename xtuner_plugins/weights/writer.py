"""Writes weights: shards are streamed tensor by tensor, block by block."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..processes import progress_bar
from .lazy import LazyTensor
from .reading import DTYPE_NAMES

SHARD_BYTES = 4 * 10**9  # the most data in a file; a larger tensor gets a file of its own


def json_text(value: Mapping) -> str:
    """Indented JSON."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def write_json(path: Path, value: Mapping) -> None:
    """Writes ``json_text`` as UTF-8."""
    path.write_text(json_text(value), encoding="utf-8")


def write_weights(stage: Path, tensors: Mapping[str, LazyTensor]) -> int:
    """Streams tensors into ``model.safetensors`` or shards, the index last, and shows how far it is.

    Args:
        stage: directory to write into.
        tensors: by name, in the dtypes to write.

    Returns:
        How many files they fill, of `SHARD_BYTES` at most.
    """
    shards, size = [{}], sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        if shards[-1] and sum(each.nbytes for each in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    count, where = len(shards), {}
    with progress_bar(total=size, unit="B", unit_scale=True, desc="writing weights") as bar:
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
            write_single(stage / file, shard, bar.update)
            where |= dict.fromkeys(sorted(shard), file)
    if count > 1:
        write_json(stage / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})
    return count


def write_single(
    path: Path, tensors: Mapping[str, LazyTensor], advance: Callable[[int], object] = lambda num_bytes: None
) -> None:
    """Streams tensors into one safetensors file.

    Args:
        path: of the file.
        tensors: by name, in the dtypes to write.
        advance: called with the number of bytes after each block.
    """
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
