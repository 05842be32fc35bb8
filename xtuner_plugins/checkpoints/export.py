"""Writes a trained model as a model directory: the checkpoint's tensors laid over the base, streamed to disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from threading import Event

from .. import preprocessing
from . import formats, trained
from .formats.draft import Draft, make_draft
from .io.reader import CheckpointError, read_json, weight_files
from .io.staging import check_target, staged_directory
from .io.tensors import Cast, cast
from .io.writer import parse_size, resolve_dtype, write_json, write_weights
from .loader import check_model
from .tokenizer_files import load_tokenizer

MANIFEST = "export_manifest.json"


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

    By default names, shapes, dtypes and config are the base's; adapters are merged in fp32 and cast once. Memory holds
    a few blocks of tensors at a time. The directory appears under its name whole or not at all.

    Args:
        config_path: the training config, its file or read already; None for a checkpoint with a record.
        checkpoint: MMEngine ``.pth``, DeepSpeed directory (ZeRO 0 to 3) or exported adapter.
        out: directory to write.
        format: ``official``, ``hf`` (transformers' own InternVL), ``llava`` (its Llava); None keeps the base's.
        dtype: of all weights; None keeps the base's, tensor by tensor.
        max_shard_size: such as ``4GB``.
        code: ``auto`` ships the base's own model code, or ours where files of it are missing; ``ours`` always ours.
        template: conversation template, if the training used several.
        max_tiles: tile limit, if the training used several; None takes the largest.
        force: replace an existing ``out``.
        progress: called with (bytes written now, bytes in all).

    Returns:
        A summary: ``out``, ``num_tensors``, ``num_replaced``, ``num_merged``, ``num_bytes``, ``num_shards``, ``kind``,
        ``notes`` (on preprocessing and model code).

    Raises:
        CheckpointError: config, checkpoint and base don't belong together; ``out`` exists; the disk is too full.
        ValueError: an argument out of range.
    """
    wanted, shard_bytes = resolve_dtype(dtype), parse_size(max_shard_size)
    plan = trained.lay_over(config_path, checkpoint).settle(template, max_tiles)
    base, opened, config = plan.view.directory, plan.checkpoint, trained.config_file(config_path)
    out = check_target(out, force=force, inputs={"base": base, "checkpoint": checkpoint, "config": config})
    base_files = [base / "config.json", *weight_files(base)]
    check_model(plan.view.config, plan.view.tensors, str(base))
    with _beside([*base_files, *opened.files, *filter(None, [config])]) as hashes:
        tensors = {}
        for name, tensor in plan.tensors(merged=True).items():
            own = plan.view.tensors[name]
            to = wanted or own.dtype
            tensors[name] = cast(tensor, to) if tensor is own else Cast(tensor, to, finite=True)
        draft = make_draft(plan.view, tensors, format=format, dtype=dtype, code=code)
        shared = plan.preprocessing and preprocessing.sharing_note(plan.preprocessing)
        draft.notes = plan.notes + draft.notes + ([shared] if shared else [])
        manifest = {
            "base": _origin(base, base_files, hashes),
            "checkpoint": {
                **_origin(opened.path, opened.files, hashes),
                "kind": opened.kind,
                **{k: v for k, v in opened.details.items() if isinstance(v, (int, str))},
            },
            "config": config and {"path": str(config), "sha256": hashes[config]},
            "dtype": dtype or "as the base",
            "format": format or "as the base",
            "replaced": sorted(plan.replaced),
            "merged": sorted(plan.adapters),
        }
        try:
            summary = _write(draft, plan.preprocessing, out, shard_bytes, manifest, progress)
        except FloatingPointError as error:
            raise CheckpointError(f"{opened.path}: {error}, so training diverged; take an earlier checkpoint") from None
    return {**summary, "num_replaced": len(plan.replaced), "num_merged": len(plan.adapters), "kind": opened.kind}


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
    """Writes a model directory in another format: official to hf or llava, or back.

    Args:
        directory: a directory of any format.
        out: directory to write.
        format: ``official``, ``hf`` or ``llava``.
        dtype: of all weights; None keeps the stored ones.
        max_shard_size: such as ``4GB``.
        template: conversation template, for an official directory.
        force: replace an existing ``out``.
        progress: called with (bytes written now, bytes in all).

    Returns:
        ``out``, ``num_tensors``, ``num_bytes``, ``num_shards``, ``notes``.

    Raises:
        CheckpointError: no model directory; the format can't express it; ``out`` exists; the disk is too full.
        ValueError: an argument out of range.
    """
    wanted, shard_bytes = resolve_dtype(dtype), parse_size(max_shard_size)
    view = formats.open_model(directory)
    out = check_target(out, force=force, inputs={"model": directory})
    files = [view.directory / "config.json", *weight_files(view.directory)]
    check_model(view.config, view.tensors, str(view.directory))
    with _beside(files) as hashes:
        tensors = {name: cast(tensor, wanted) for name, tensor in view.tensors.items()}
        draft = make_draft(view, tensors, format=format, dtype=dtype, template=template)
        lock = _kept_preprocessing(view, template)
        manifest = {"model": _origin(view.directory, files, hashes), "dtype": dtype or "as stored", "format": format}
        return _write(draft, lock, out, shard_bytes, manifest, progress)


def _kept_preprocessing(view: formats.ModelView, template: str | None) -> dict | None:
    """The directory's own ``preprocessing.json`` with the template of the conversion; None without such a file."""
    path = view.directory / preprocessing.FILE
    lock = read_json(path, missing={})
    if not lock:
        return None
    exported = asdict(preprocessing.exported(lock, str(path)))
    preprocessing.check_token_rules(lock, load_tokenizer(view.directory), str(path))
    return {**lock, "exported": {**exported, "template": template or exported["template"]}}


def _write(draft: Draft, lock: dict | None, out: Path, shard_bytes: int, manifest: dict, progress) -> dict:
    """Writes a draft to ``out``; returns the part of the summary that is common to ``export`` and ``convert``.

    Args:
        draft: what to write.
        lock: content of ``preprocessing.json``; None writes no such file.
        out: the directory to make.
        shard_bytes: most bytes per weight file.
        manifest: may hold digests that are still being computed.
        progress: as for ``export``.
    """
    num_bytes = sum(tensor.nbytes for tensor in draft.tensors.values())

    def advance(written: int) -> None:
        if progress:
            progress(written, num_bytes)

    with staged_directory(out, draft.config, num_bytes) as stage:
        draft.write_files(stage)
        files = write_weights(stage, draft.tensors, max_shard_size=shard_bytes, advance=advance)
        if lock is not None:
            write_json(stage / preprocessing.FILE, lock)
        versions = {name: version(name) for name in ("torch", "transformers", "peft")}
        write_json(stage / MANIFEST, {**manifest, "versions": versions}, default=Future.result)
    return {
        "out": str(out),
        "num_tensors": len(draft.tensors),
        "num_bytes": num_bytes,
        "num_shards": len(files),
        "notes": draft.notes,
    }


@contextmanager
def _beside(sources: list[Path]) -> Iterator[dict[Path, Future]]:
    """Computes the SHA-256 of the sources (by path) in other threads, while weights are written.

    An error stops the threads. Nothing in them may import transformers: two threads that import it at once both fail.
    """
    stop = Event()
    with ThreadPoolExecutor(2) as pool:
        hashes = {path: pool.submit(_hash, path, stop) for path in sources}
        try:
            yield hashes
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _hash(path: Path, stop: Event) -> str:
    """Hexadecimal SHA-256 of a file; meaningless after ``stop`` was set."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while (size := file.readinto(buffer)) and not stop.is_set():
            digest.update(buffer[:size])
    return digest.hexdigest()


def _origin(path: Path, files: list[Path], hashes: dict[Path, Future]) -> dict:
    return {"path": str(path), "sha256": {file.name: hashes[file] for file in files}}
