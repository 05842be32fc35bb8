"""Opens weight files lazily, tensor by tensor, and runs nothing that they name.

======================================  ====================================================================
``model.safetensors``, sharded + index  an official, Hugging Face or adapter directory
``pytorch_model.bin``, sharded + index  older releases
``*.pth``, ``*.pt``                     torch files, including MMEngine's ``{'state_dict': ..., 'meta': ..., ...}``
======================================  ====================================================================

``checkpoint.py`` opens what training leaves, such as a DeepSpeed directory.

A pickle is opened with ``weights_only=True``. Objects of the packages that write training checkpoints
(``HistoryBuffer``, ``ConfigDict``, numpy scalars, DeepSpeed's loss scaler, ...) become inert stand-ins: their class is
neither imported nor called. A file that names any other class is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch

from .errors import CheckpointError
from .lazy import FileTensor, LazyTensor, MemoryTensor

_MAX_HEADER = 100 * 2**20  # the limit of the safetensors library itself
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Packages whose objects sit beside the tensors of a training checkpoint. Nothing of them is imported here.
_STAND_IN_PACKAGES = (
    "mmengine",
    "numpy",
    "deepspeed",
    "xtuner",
    "xtuner_plugins",
    "torch",
    "transformers",
    "peft",
    "collections",
    "pathlib",
    "datetime",
    "argparse",
    "addict",
    "enum",
)
_STAND_IN_BUILTINS = {"builtins." + n for n in ("set", "frozenset", "slice", "complex", "range", "getattr", "object")}


@dataclass
class Checkpoint:
    """What was found under one path.

    Attributes:
        path: as given.
        kind: ``mmengine``, ``deepspeed``, ``peft`` or ``weights``.
        tensors: name to lazy tensor, names as stored.
        files: the files that hold it, for hashing.
        details: kind-specific facts (``zero_stage``, ``world_size``; ``adapter_config`` for PEFT).
        preprocessing: what `xtuner_plugins.weights.preprocessing` locked into it; None if it holds no such thing.
        record: of the run that wrote it, see ``record.py``; None if it holds none.
    """

    path: Path
    kind: str
    tensors: dict[str, LazyTensor]
    files: list[Path]
    details: dict = field(default_factory=dict)
    preprocessing: dict | None = None
    record: dict | None = None


class _StandIn:
    """Replaces an object that isn't a tensor; keeps the arguments of its constructor, ignores its state."""

    def __init__(self, *args, **kwargs):
        self.args = args

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


def read_json(path: str | Path, missing: dict | None = None) -> dict:
    """A JSON object from a file.

    Args:
        path: of the file.
        missing: what to return if there is no such file; None makes that an error.

    Raises:
        CheckpointError: missing, unreadable or not a JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise CheckpointError(f"{path} does not exist") from None
    except RecursionError:
        raise CheckpointError(f"{path} is not readable JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def open_safetensors(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file, its header checked against the file's size.

    Raises:
        CheckpointError: not a safetensors file, cut off, or offsets that don't fit the shapes.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, size - 8):
                raise CheckpointError(f"{path} is not a safetensors file (no valid header); copy or download it again")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is a JSON {type(header).__name__}, expected an object")
    tensors: dict[str, LazyTensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
            begin, end = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: entry of tensor {name} is malformed or of an unknown dtype ({error})"
            ) from None
        tensor = FileTensor(path, 8 + length + begin, dtype, shape)
        if min(shape, default=0) < 0 or begin < 0 or end - begin != tensor.nbytes:
            raise CheckpointError(
                f"{path}: offsets {begin}..{end} of tensor {name} don't fit {entry['dtype']} {list(shape)}"
            )
        if 8 + length + end > size:
            raise CheckpointError(
                f"{path} is cut off: tensor {name} ends at byte {8 + length + end}, the file at {size}; "
                "copy or download it again"
            )
        tensors[name] = tensor
    placed = sorted((t for t in tensors.values() if t.nbytes), key=lambda t: t.offset)
    if any(a.offset + a.nbytes > b.offset for a, b in zip(placed, placed[1:], strict=False)):
        raise CheckpointError(f"{path}: tensors overlap; copy or download it again")
    return tensors


def load_pickle(path: str | Path):
    """The object stored in a torch file, running nothing that the file names.

    Returns:
        The object; each tensor in its dicts, lists and tuples is a ``LazyTensor``, other objects are inert stand-ins.

    Raises:
        CheckpointError: unreadable, or it names classes outside the packages that write checkpoints.
    """
    path = Path(path)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception:  # not a zip archive
        raise CheckpointError(
            f"{path} is not a torch checkpoint, or one from before torch 1.6: load it there and save it again"
        ) from None
    foreign = [n for n in names if n not in _STAND_IN_BUILTINS and n.split(".")[0] not in _STAND_IN_PACKAGES]
    if foreign:
        raise CheckpointError(
            f"{path} wants to run {', '.join(foreign)}, which no training checkpoint needs: refused. "
            "Save only tensors and plain values, or get the file from a source that you trust"
        )
    try:
        with torch.serialization.safe_globals([(type("StandIn", (_StandIn,), {}), n) for n in names]):
            content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} can't be read as a torch checkpoint: {str(error).splitlines()[0]}") from None
    return _lazy(content, path)


def _lazy(value, path: Path):
    if isinstance(value, torch.Tensor):
        offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
        if offset is None:
            return MemoryTensor(value)
        start = offset + value.storage_offset() * value.dtype.itemsize
        if value.is_contiguous():
            return FileTensor(path, start, value.dtype, value.shape)
        # saved as a transposed or sliced view: read now, with its whole span
        span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) if value.numel() else 0
        flat = FileTensor(path, start, value.dtype, (span,)).read()
        return MemoryTensor(torch.as_strided(flat, value.shape, value.stride()))
    if isinstance(value, Mapping):
        return {k: _lazy(v, path) for k, v in value.items()}
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, (list, tuple)):
        return [_lazy(v, path) for v in value]
    return value


def shard_paths(index_path: Path) -> dict[str, Path]:
    """Tensor name to shard file of an index; a file outside the index's folder is refused."""
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path} has no weight_map")
    for name, file in weight_map.items():
        parts = PurePosixPath(file).parts if isinstance(file, str) else ()
        if not parts or ".." in parts or PurePosixPath(file).is_absolute() or "\\" in file:
            raise CheckpointError(f"{index_path}: tensor {name} points to {file!r}, outside its own folder: refused")
    return {name: index_path.parent / file for name, file in weight_map.items()}


def open_weights(directory: str | Path) -> dict[str, LazyTensor]:
    """All tensors of a model directory: safetensors or torch files, single or sharded.

    Raises:
        CheckpointError: no such directory, no weights in it, a shard missing, or index and shards that disagree.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"model directory {directory} does not exist")
    files = weight_files(directory)
    if not files:
        raise CheckpointError(
            f"{directory} has no model.safetensors(.index.json) nor pytorch_model.bin(.index.json); "
            f"it holds: {listing(directory)}"
        )
    opener = open_safetensors if files[0].name.startswith("model.safetensors") else open_torch
    return _open_shards(files[0], opener) if files[0].suffix == ".json" else opener(files[0])


def listing(directory: Path) -> str:
    """The first names in a directory, for messages."""
    return ", ".join(sorted(path.name for path in directory.iterdir())[:8]) or "nothing"


def _open_shards(index: Path, opener) -> dict[str, LazyTensor]:
    where = shard_paths(index)
    missing = sorted({p.name for p in where.values() if not p.is_file()})
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks the shard{'s' * (len(missing) > 1)} {', '.join(missing)} "
            "that its index names; download the rest"
        )
    shards = {path: opener(path) for path in sorted(set(where.values()))}
    for name, path in where.items():
        if name not in shards[path]:
            raise CheckpointError(f"{index} says that {name} is in {path.name}, but it isn't there")
    stray = sorted(n for path, held in shards.items() for n in held if where.get(n) != path)
    if stray:
        raise CheckpointError(f"{index} doesn't list {stray[0]} ({len(stray)} such tensors): index and shards disagree")
    return {name: shards[path][name] for name, path in where.items()}


def open_torch(path: Path) -> dict[str, LazyTensor]:
    """The state dict of a torch file, which may be the file itself or its entry ``state_dict``.

    Raises:
        CheckpointError: unreadable, or no state dict.
    """
    return state_dict(load_pickle(path), path)


def state_dict(content, path: Path) -> dict[str, LazyTensor]:
    """The state dict in an object from ``load_pickle``; errors as for ``open_torch``."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no state dict")
    wrong = [str(k) for k, v in content.items() if not isinstance(v, LazyTensor)]
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong[0]} is not a tensor ({len(wrong)} such entries), so this is no state dict"
        )
    return content


def weight_files(directory: str | Path) -> list[Path]:
    """The files that ``open_weights`` reads, index first."""
    directory = Path(directory)
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{stem}.index.json"
        if index.is_file():
            return [index, *sorted(set(shard_paths(index).values()))]
        if (directory / stem).is_file():
            return [directory / stem]
    return []
