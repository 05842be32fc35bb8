"""Opens weight files lazily, tensor by tensor, and runs nothing that they name.

======================================  ====================================================================
``model.safetensors``, sharded + index  an official, Hugging Face or adapter directory
``pytorch_model.bin``, sharded + index  older releases
``*.pth``, ``*.pt``                     torch files, including MMEngine's ``{'state_dict': ..., 'meta': ..., ...}``
======================================  ====================================================================

A pickle is opened with ``weights_only=True``. Objects of the packages that write training checkpoints
(``HistoryBuffer``, ``ConfigDict``, numpy scalars, DeepSpeed's loss scaler, ...) become inert stand-ins: their class is
neither imported nor called. A file that names any other class is refused.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import CheckpointError
from .lazy import FileTensor, LazyTensor, MemoryTensor

_DTYPES = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16, BOOL=torch.bool)
_DTYPES |= dict(I64=torch.int64, I32=torch.int32, I16=torch.int16, I8=torch.int8, U8=torch.uint8)
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Packages whose objects sit beside the tensors of a training checkpoint. Nothing of them is imported here.
_STAND_IN_PACKAGES = (
    "mmengine numpy deepspeed xtuner xtuner_plugins torch transformers peft collections pathlib datetime argparse "
    "addict enum"
).split()
_STAND_IN_BUILTINS = {"builtins." + n for n in ("set", "frozenset", "slice", "complex", "range", "getattr", "object")}
STEMS = ("model.safetensors", "pytorch_model.bin")


@dataclass
class Checkpoint:
    """What was found under one path.

    Attributes:
        path: as given.
        kind: ``mmengine``, ``deepspeed``, ``adapter`` or ``weights``.
        tensors: name to lazy tensor, names as stored.
        files: the files that hold it, for hashing.
        run: what it says of the run that wrote it, if there was one: ``record`` and ``preprocessing`` (see the modules
            of these names), ``image_gain`` (what ``ImageGainHook`` measured last), ``plan`` (the position in the data),
            MMEngine's ``meta`` with ``iter``, and the optimizer's state.
    """

    path: Path
    kind: str
    tensors: dict[str, LazyTensor]
    files: list[Path]
    run: Mapping[str, Any] = field(default_factory=dict)


class _StandIn:
    """Replaces an object that isn't a tensor; keeps the arguments of its constructor, ignores its state and items."""

    def __init__(self, *args, **kwargs):
        self.args = args

    append = extend = __setitem__ = __setstate__ = lambda self, *args: None


def read_json(path: str | Path, missing: dict | None = None) -> dict:
    """A JSON object from a file, or ``missing`` where there is none.

    Raises:
        CheckpointError: no file and no ``missing``, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if missing is None or not isinstance(error, FileNotFoundError):
            raise CheckpointError(f"{path} is not readable JSON: {error}") from None
        return missing
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def open_safetensors(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file, whose header the library has checked against the file's size.

    Raises:
        CheckpointError: not a safetensors file, cut off, or tensors that overlap or don't fit their shapes.
    """
    try:
        with safe_open(path, "pt"), open(path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
        return {
            name: FileTensor(path, start + entry["data_offsets"][0], _DTYPES[entry["dtype"]], entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, KeyError, SafetensorError, RecursionError) as error:
        told = f"{path} is not a whole safetensors file of known types ({error}); get it again"
        raise CheckpointError(told) from None


def load_pickle(path: str | Path):
    """The object stored in a torch file, running nothing that the file names.

    Returns:
        The object; each tensor in its dicts, lists and tuples is a ``LazyTensor``, other objects are inert stand-ins.

    Raises:
        CheckpointError: unreadable, or it names classes outside the packages that write checkpoints.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        foreign = [n for n in names if n not in _STAND_IN_BUILTINS and n.split(".")[0] not in _STAND_IN_PACKAGES]
        if foreign:
            raise ValueError(f"it wants to run {', '.join(foreign)}, which no checkpoint needs: refused")
        with torch.serialization.safe_globals([(type("StandIn", (_StandIn,), {}), n) for n in names]):
            content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is not a torch checkpoint, of torch 1.6 or newer: {reason}") from None
    return _lazy(content, Path(path))


def _lazy(value, path: Path):
    if isinstance(value, torch.Tensor):
        offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
        if offset is None:
            return MemoryTensor(value)
        start = offset + value.storage_offset() * value.dtype.itemsize
        if value.is_contiguous():
            return FileTensor(path, start, value.dtype, value.shape)
        # saved as a transposed or sliced view: read now, with its whole span
        span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        held = FileTensor(path, start, value.dtype, (span,)).read()
        return MemoryTensor(held.as_strided(value.shape, value.stride()))
    if isinstance(value, Mapping):
        return {k: _lazy(v, path) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return [_lazy(v, path) for v in value]
    return value


def state_dict(path: Path, content=None) -> dict[str, LazyTensor]:
    """The state dict of a torch file (or of what `load_pickle` has read): all of it, or its entry ``state_dict``.

    Raises:
        CheckpointError: unreadable, or no state dict.
    """
    content = load_pickle(path) if content is None else content
    held = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(held, dict) or not held or not all(isinstance(each, LazyTensor) for each in held.values()):
        raise CheckpointError(f"{path} holds no state dict, whose values are tensors alone")
    return held


def open_weights(directory: str | Path) -> dict[str, LazyTensor]:
    """All tensors of a model directory: safetensors or torch files, single or sharded.

    Raises:
        CheckpointError: no such directory, no weights in it, a shard missing, or index and shards that disagree.
    """
    if not Path(directory).is_dir():
        raise CheckpointError(f"model directory {directory} does not exist")
    files = weight_files(directory)
    if not files:
        raise CheckpointError(f"{directory} has no {' nor '.join(STEMS)} (.index.json); it holds: {listing(directory)}")
    index, *shards = files
    opener = open_safetensors if index.name.startswith(STEMS[0]) else state_dict
    if not shards:
        return opener(index)
    if missing := [path.name for path in shards if not path.is_file()]:
        raise CheckpointError(f"{directory} lacks {', '.join(missing)}, which {index.name} names; download the rest")
    held = {(name, path.name): tensor for path in shards for name, tensor in opener(path).items()}
    where = _weight_map(index)
    if wrong := sorted(held.keys() ^ where.items()):
        name, file = wrong[0]
        raise CheckpointError(f"{index} and the shards disagree about {len(wrong)} tensors, such as {name} in {file}")
    return {name: held[name, file] for name, file in where.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to name of its shard in an index; a file outside the index's folder is refused."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index} has no weight_map")
    for name, file in found.items():
        if not isinstance(file, str) or file in ("", ".", "..") or Path(file).name != file:
            raise CheckpointError(f"{index}: tensor {name} points to {file!r}, outside its own folder: refused")
    return found


def weight_files(directory: str | Path) -> list[Path]:
    """The files that ``open_weights`` reads, index first."""
    for stem in STEMS:
        whole, index = Path(directory, stem), Path(directory, f"{stem}.index.json")
        if index.is_file():
            return [index, *(index.with_name(file) for file in sorted(set(_weight_map(index).values())))]
        if whole.is_file():
            return [whole]
    return []


def listing(directory: str | Path) -> str:
    """The first names in a directory, for messages."""
    return ", ".join(sorted(os.listdir(directory))[:8]) or "nothing"
