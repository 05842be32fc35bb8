"""Writes a trained model as a model directory: the checkpoint's tensors laid over the base, streamed to disk."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from ..dtypes import resolve_dtype
from ..weights import manifest, model_view, preprocessing, record
from ..weights.errors import from_outside
from ..weights.lazy import cast
from ..weights.loader import check_model
from ..weights.reading import read_json, weight_files
from ..weights.staging import check_target, staged_directory
from ..weights.tokenizer_files import load_tokenizer
from ..weights.writer import json_text, write_json, write_weights
from . import card, trained
from .draft import Draft, make_draft, with_template


@dataclass
class Job:
    """An export or a conversion before anything is written; `verify` reads it again to check what was written.

    Attributes:
        plan: the base with what was trained; for a conversion, the directory with nothing laid over it.
        draft: the directory to write.
        lock: content of ``preprocessing.json``; None for none.
        sources: what is read, by role: a path and its files.
        facts: further entries of the manifest.
        card: content of ``README.md``; None for none. The manifest leaves it out, so that users can edit it.
    """

    plan: trained.TrainedPlan
    draft: Draft
    lock: dict | None
    sources: dict[str, tuple[Path, list[Path]]]
    facts: dict
    card: str | None = None

    def write_small(self, stage: Path) -> None:
        """Writes all files but weights, ``config.json`` and the manifest."""
        self.draft.write_files(stage)
        if self.lock is not None:
            write_json(stage / preprocessing.FILE, self.lock)
        if self.card is not None:
            (stage / card.FILE).write_text(self.card, encoding="utf-8")

    def manifest(self) -> dict:
        """The manifest without the digests of the export's own files."""
        origins = {
            role: {"path": str(path), "sha256": {file.name: record.file_hash(file) for file in files}}
            for role, (path, files) in self.sources.items()
        }
        versions = {name: version(name) for name in ("torch", "transformers", "peft")}
        return {**origins, **self.facts, "versions": versions}


def prepare(
    config: str | Path | None,
    checkpoint: str | Path,
    *,
    format: str | None = None,
    dtype: str | None = None,
    template: str | None = None,
    max_tiles: int | None = None,
) -> Job:
    """The export of a training checkpoint.

    By default names, shapes, dtypes and config are the base's; adapters are merged in fp32 and cast once.

    Args:
        config: as for `lay_over`, like ``checkpoint``.
        checkpoint: likewise.
        format: ``official``, ``hf`` (transformers' own InternVL), ``llava`` (its Llava); None keeps the base's.
        dtype: of all weights; None keeps the base's, tensor by tensor.
        template: as for `TrainedPlan.settle`, like ``max_tiles``.
        max_tiles: likewise.

    Raises:
        CheckpointError: config, checkpoint and base don't belong together; the format can't express the model.
        ValueError: an argument out of range.
    """
    wanted = dtype and resolve_dtype(dtype)
    plan = trained.lay_over(config, checkpoint).settle(template, max_tiles)
    view, opened, file = plan.view, plan.checkpoint, config and Path(getattr(config, "filename", config))
    check_model(view.config, view.tensors, str(view.directory))
    own = view.tensors
    tensors = {
        name: cast(tensor, wanted or own[name].dtype, finite=None if tensor is own[name] else f"{opened.path}: {name}")
        for name, tensor in plan.tensors(merged=True).items()
    }
    draft = make_draft(view, tensors, format=format, dtype=dtype)
    if plan.preprocessing and (most := plan.preprocessing["exported"]["max_tiles"]) > 1:
        plan.notes.append(f"several images of a record shared {most} tiles; serving engines give each of them {most}")
    sources = {"base": _model_source(view), "checkpoint": (opened.path, opened.files)}
    sources |= {"config": (file, [file])} if file else {}
    facts = {"kind": opened.kind, "dtype": dtype or "as the base", "format": format or "as the base"}
    facts |= {"replaced": sorted(plan.replaced), "merged": sorted(plan.adapters)}
    return Job(plan, draft, plan.preprocessing, sources, facts, card.make(plan))


def prepare_conversion(
    directory: str | Path, *, format: str, dtype: str | None = None, template: str | None = None
) -> Job:
    """A model directory in another format: official to hf or llava, or back; errors as for `prepare`.

    Args:
        directory: a directory of any format.
        format: ``official``, ``hf`` or ``llava``.
        dtype: of all weights; None keeps the stored ones.
        template: conversation template, for an official directory.
    """
    wanted, view = dtype and resolve_dtype(dtype), model_view.open_model(directory)
    check_model(view.config, view.tensors, str(directory))
    tensors = {name: cast(tensor, wanted, finite=f"{directory}: {name}") for name, tensor in view.tensors.items()}
    draft = make_draft(view, tensors, format=format, dtype=dtype, template=template)
    view.config = with_template(view.config, template)
    path, readme = view.directory / preprocessing.FILE, view.directory / card.FILE
    if lock := read_json(path, missing={}):
        lock = preprocessing.checked(lock, load_tokenizer(directory), str(path))
        with from_outside(path):
            exported = with_template(asdict(preprocessing.Choice.of(lock["exported"])), template)
        lock["exported"] = asdict(preprocessing.Choice.of(exported))
    kept = readme.read_text(encoding="utf-8") if readme.is_file() else None
    facts = {"dtype": dtype or "as stored", "format": format}
    return Job(trained.TrainedPlan(view), draft, lock or None, {"model": _model_source(view)}, facts, kept)


def _model_source(view: model_view.ModelView) -> tuple[Path, list[Path]]:
    return view.directory, [view.directory / "config.json", *weight_files(view.directory)]


def write(job: Job, out: str | Path, *, force: bool = False) -> dict:
    """Writes a job; the directory appears under its name whole or not at all. Memory holds a few blocks at a time.

    Args:
        job: what to write.
        out: the directory to make.
        force: replace an existing ``out``.

    Returns:
        A summary: ``out``, ``num_tensors``, ``num_replaced``, ``num_merged``, ``num_bytes``, ``num_shards``, ``notes``.

    Raises:
        CheckpointError: ``out`` exists; the disk is too full; a trained tensor holds NaN or infinity.
    """
    out = check_target(out, force=force, inputs={role: path for role, (path, _) in job.sources.items()})
    draft, num_bytes = job.draft, sum(tensor.nbytes for tensor in job.draft.tensors.values())
    with ThreadPoolExecutor(1) as pool, staged_directory(out, draft.config, num_bytes) as stage:
        content = pool.submit(job.manifest)  # hashes the sources while weights are written
        job.write_small(stage)
        num_shards = write_weights(stage, draft.tensors)
        own = manifest.digests(stage) | {"config.json": hashlib.sha256(json_text(draft.config).encode()).hexdigest()}
        files = {name: own[name] for name in sorted(own) if name != card.FILE}
        write_json(stage / manifest.FILE, {**content.result(), "files": files})
    plan, done = job.plan, {"out": str(out), "num_tensors": len(draft.tensors), "num_bytes": num_bytes}
    done |= {"num_replaced": len(plan.replaced), "num_merged": len(plan.adapters), "num_shards": num_shards}
    return {**done, "notes": plan.notes}


def export(
    config: str | Path | None, checkpoint: str | Path, out: str | Path, *, force: bool = False, **choices
) -> dict:
    """`prepare`, whose options are the choices, then `write`, whose result this is."""
    return write(prepare(config, checkpoint, **choices), out, force=force)


def convert(directory: str | Path, out: str | Path, *, force: bool = False, **choices) -> dict:
    """`prepare_conversion`, whose options are the choices, then `write`, whose result this is."""
    return write(prepare_conversion(directory, **choices), out, force=force)
