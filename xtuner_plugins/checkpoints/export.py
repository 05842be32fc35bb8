"""Writes a trained model as an official directory: the checkpoint's tensors laid over the base, streamed to disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from xtuner_plugins import preprocessing

from . import formats, trained
from .formats.draft import Draft, make_draft
from .io.reader import CheckpointError, read_json, weight_files
from .io.staging import check_disk, check_target, staged_directory, write_config
from .io.tensors import LazyTensor, Scratch, cast, empty
from .io.writer import parse_size, resolve_dtype, total_bytes, write_json, write_weights
from .lora.merge import PlainLora

MANIFEST = "export_manifest.json"


class _Finite(LazyTensor):
    """A trained tensor on its way to disk: cast, and refused when it isn't finite."""

    def __init__(self, source: LazyTensor, dtype: torch.dtype, name: str, checkpoint: Path):
        self._source, self.dtype, self.shape = source, dtype, source.shape
        self._name, self._checkpoint = name, checkpoint

    def read_flat(self, start: int, stop: int, scratch: Scratch | None = None) -> torch.Tensor:
        block = self._source.read_flat(start, stop, scratch)
        # Casting keeps order and NaN, so two numbers tell about all of them.
        if block.is_floating_point() and block.numel():
            least, greatest = block.aminmax()
            if not torch.stack([least, greatest]).to(self.dtype).isfinite().all():
                raise CheckpointError(
                    f"{self._checkpoint}: {self._name} holds NaN or infinity, so training diverged; "
                    "take an earlier checkpoint"
                )
        if block.dtype == self.dtype:
            return block
        return empty(block.numel(), self.dtype, scratch).copy_(block)


def export(
    config_path: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    dtype: str | None = None,
    max_shard_size: str | int = "4GB",
    code: str = "auto",
    template: str | None = None,
    max_tiles: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Exports a training checkpoint as a model directory.

    By default names, shapes, dtypes and config are exactly the base's; adapters are merged in fp32 and cast once.
    Memory holds one block of one tensor at a time. The directory appears under its name whole or not at all.

    Args:
        config_path: the training config (names base and adapters).
        checkpoint: MMEngine ``.pth``, DeepSpeed directory (ZeRO 0 to 3) or PEFT adapter.
        out: directory to write.
        format: ``official``, ``hf`` (transformers' own InternVL), ``llava`` (its Llava); None keeps the base's.
        dtype: of all weights; None keeps the base's, tensor by tensor.
        max_shard_size: such as ``4GB``.
        code: ``auto`` ships the base's own model code, ours where that isn't whole; ``ours`` always ships ours.
        template: conversation template, for a checkpoint that was trained with several.
        max_tiles: tile limit, likewise; None takes the largest.
        force: replace an existing ``out``.
        progress: called with (bytes written now, bytes in all).

    Returns:
        A summary: ``out``, ``num_tensors``, ``num_replaced``, ``num_merged``, ``num_bytes``, ``num_shards``, ``kind``,
        ``notes`` (what to know about preprocessing and model code).

    Raises:
        CheckpointError: config, checkpoint and base don't belong together; ``out`` exists; the disk is too full.
        ValueError: an argument out of range.
    """
    wanted, shard_bytes = _check_options(dtype, max_shard_size, code)
    plan = trained.lay_over(config_path, checkpoint).settle(template, max_tiles)
    out = check_target(out, force=force, inputs={"base": plan.base, "checkpoint": checkpoint, "config": config_path})
    changed = plan.changed
    sources = [*_base_files(plan.base), *plan.checkpoint.files, Path(config_path)]

    def record(hashes: dict[str, str]) -> dict:
        return {
            "base": _origin(plan.base, _base_files(plan.base), hashes),
            "checkpoint": {
                **_origin(plan.checkpoint.path, plan.checkpoint.files, hashes),
                "kind": plan.checkpoint.kind,
                **{k: v for k, v in plan.checkpoint.details.items() if isinstance(v, (int, str))},
            },
            "config": {"path": str(config_path), "sha256": hashes[str(config_path)]},
            "dtype": dtype or "as the base",
            "format": format or "as the base",
            "replaced": sorted(plan.replaced),
            "merged": sorted(plan.adapters),
        }

    with _Beside(sources, plan.view, plan.without_adapters()) as beside:
        if format is not None or not all(isinstance(config, PlainLora) for config in plan.lora_configs.values()):
            beside.wait_for_check()
        tensors = {}
        for name, tensor in plan.merged().items():
            to = wanted or plan.base_tensors[name].dtype
            tensors[name] = _Finite(tensor, to, name, Path(checkpoint)) if name in changed else cast(tensor, to)
        draft = make_draft(plan.view, tensors, format=format, dtype=dtype, code=code)
        draft.notes = plan.notes + draft.notes
        summary = _write(draft, plan.preprocessing, out, shard_bytes, record, progress, beside)
    return {
        **summary,
        "num_replaced": len(plan.replaced),
        "num_merged": len(plan.adapters),
        "kind": plan.checkpoint.kind,
    }


def convert(
    directory: str | Path,
    out: str | Path,
    *,
    format: str,
    dtype: str | None = None,
    max_shard_size: str | int = "4GB",
    template: str | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Writes a finished model directory in another format: official to hf or llava, or back.

    Args:
        directory: a directory of any format.
        out: directory to write.
        format: ``official``, ``hf`` or ``llava``.
        dtype: of all weights; None keeps the stored ones.
        max_shard_size: such as ``4GB``.
        template: conversation template of an official directory (no other names one).
        force: replace an existing ``out``.
        progress: called with (bytes written now, bytes in all).

    Returns:
        ``out``, ``num_tensors``, ``num_bytes``, ``num_shards``, ``notes``.

    Raises:
        CheckpointError: not such a directory, or the format can't express it; ``out`` exists; the disk is too full.
        ValueError: an argument out of range.
    """
    wanted, shard_bytes = _check_options(dtype, max_shard_size, "auto")
    view = formats.open_model(directory)
    out = check_target(out, force=force, inputs={"model": directory})
    tensors = {name: cast(tensor, wanted or tensor.dtype) for name, tensor in view.tensors.items()}
    files = _base_files(view.directory)

    def record(hashes: dict[str, str]) -> dict:
        return {"model": _origin(view.directory, files, hashes), "dtype": dtype or "as stored", "format": format}

    with _Beside(files, view, view.tensors) as beside:
        beside.wait_for_check()
        draft = make_draft(view, tensors, format=format, dtype=dtype, template=template)
        lock = _kept_preprocessing(view, template)
        return _write(draft, lock, out, shard_bytes, record, progress, beside)


def _kept_preprocessing(view: formats.ModelView, template: str | None) -> dict | None:
    """The directory's own ``preprocessing.json``, with the template that a conversion gives it."""
    path = view.directory / preprocessing.FILE
    if not path.is_file():
        return None
    lock = read_json(path)
    exported = asdict(preprocessing.exported(lock, str(path)))
    return {**lock, "exported": {**exported, "template": template or exported["template"]}}


def _check_options(dtype, max_shard_size, code) -> tuple[torch.dtype | None, int]:
    if code not in ("auto", "ours"):
        raise ValueError(f"code {code!r} is unknown; choose auto or ours")
    return resolve_dtype(dtype), parse_size(max_shard_size)


def _write(draft: Draft, lock: dict | None, out: Path, shard_bytes: int, record, progress, beside: _Beside) -> dict:
    tensors = {name: (tensor, tensor.dtype) for name, tensor in draft.tensors.items()}
    num_bytes = total_bytes(tensors)
    check_disk(out, num_bytes)

    def advance(written: int) -> None:
        beside.raise_early()
        if progress:
            progress(written, num_bytes)

    with staged_directory(out) as stage:
        draft.write_files(stage)
        files = write_weights(stage, tensors, max_shard_size=shard_bytes, advance=advance)
        if lock is not None:
            write_json(stage / preprocessing.FILE, lock)
        write_json(stage / MANIFEST, {**record(beside.result()), "versions": _versions()})
        write_config(stage, draft.config)
    return {
        "out": str(out),
        "num_tensors": len(tensors),
        "num_bytes": num_bytes,
        "num_shards": len(files),
        "notes": draft.notes,
    }


def check_model(view: formats.ModelView, tensors: Mapping[str, LazyTensor]) -> None:
    """Names and shapes against a hub model without memory.

    Raises:
        CheckpointError: what is missing, unexpected or misshapen.
    """
    from xtuner_plugins.hub.modeling_internvl_chat import InternVLChatModel

    from .loader import compare, config_from_fields

    config = config_from_fields(view.config, view.directory)
    with torch.device("meta"):  # this thread's alone, unlike accelerate's, which would reach into a merge
        model = InternVLChatModel(config)
    compare(model, {name: tensor.shape for name, tensor in tensors.items()}).raise_if_bad(str(view.directory))


def _base_files(directory: Path) -> list[Path]:
    return [directory / "config.json", *weight_files(directory)]


class _Beside:
    """What needs no part in the writing and so runs beside it: SHA-256 of the sources, and the check of the model.

    Importing the model's classes takes seconds, in which bytes can flow already; nothing gets its name before the
    check has passed. After an error all stops soon.
    """

    def __init__(self, sources: list[Path], view: formats.ModelView, tensors: Mapping[str, LazyTensor]):
        self._sources, self._view, self._tensors, self._stop = sources, view, tensors, False

    def __enter__(self) -> _Beside:
        self._pool = ThreadPoolExecutor(3)  # two of them hash
        self._check = self._pool.submit(check_model, self._view, self._tensors)
        self._hashes = {str(path): self._pool.submit(self._hash, path) for path in self._sources}
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stop = kind is not None
        self._pool.shutdown(cancel_futures=self._stop)

    def wait_for_check(self) -> None:
        """For whoever imports transformers too (tokenizers, PEFT): two threads that do so at once both fail."""
        self._check.result()

    def raise_early(self) -> None:
        """Raises what the check found, if it is through."""
        if self._check.done():
            self._check.result()

    def result(self) -> dict[str, str]:
        """Hexadecimal digests by path; waits for them and for the check."""
        self.wait_for_check()
        return {path: future.result() for path, future in self._hashes.items()}

    def _hash(self, path: Path) -> str:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(2**20))
        with open(path, "rb", buffering=0) as file:
            while (size := file.readinto(buffer)) and not self._stop:
                digest.update(buffer[:size])
        return digest.hexdigest()


def _origin(path: Path, files: list[Path], hashes: dict[str, str]) -> dict:
    return {"path": str(path), "sha256": {Path(f).name: hashes[str(f)] for f in files}}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "peft")}
