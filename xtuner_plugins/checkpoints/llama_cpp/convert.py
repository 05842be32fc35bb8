"""Writes a model directory as two GGUF files, streamed: the language model and the mmproj."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf

from .. import formats
from ..errors import CheckpointError
from ..io.staging import staged_file
from ..io.tensors import LazyTensor
from . import language_model, vision
from .number_types import PLAIN, TYPES, Encoded, check_available, choose_type
from .vocabulary import add_vocabulary

NEEDS_OVERVIEW = (
    "llama.cpp adds a thumbnail to every image that is larger than a tile, unlike this model's training: resize images "
    "to one tile before sending them"
)


@dataclass
class Converted:
    """The two files of a conversion.

    Attributes:
        model: the language model's path.
        mmproj: path of encoder and projector.
        num_bytes: of both.
        notes: what the user has to know.
    """

    model: Path
    mmproj: Path
    num_bytes: int
    notes: list[str] = field(default_factory=list)


def convert(
    directory: str | Path,
    out: str | Path,
    *,
    kind: str | None = None,
    mmproj_kind: str | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Writes ``NAME-KIND.gguf`` and ``mmproj-NAME-KIND.gguf``.

    Each file appears whole or not at all.

    Args:
        directory: an export or a base, official or hf.
        out: the folder for the files; made if missing.
        kind: of the language model, one of ``TYPES``; None takes the dtype of the weights.
        mmproj_kind: of the mmproj; None takes that of the language model, or f16 if that is quantized.
        name: in file names and in the model's field; None takes the directory's.
        force: replace existing files.
        progress: called with (bytes read now, bytes to read in all).

    Raises:
        CheckpointError: no model directory, a model that llama.cpp can't run, a file that exists, a full disk.
    """
    view = formats.open_model(directory)
    vision.check(view.config)
    language = {**view.config["llm_config"]}
    language_model.architecture(language)
    kind = kind or PLAIN.get(view.tensors[f"{language_model.PREFIX}lm_head.weight"].dtype, "f32")
    mmproj_kind = mmproj_kind or (kind if kind in PLAIN.values() else "f16")
    check_available(kind)
    check_available(mmproj_kind)
    name = name or Path(os.path.realpath(directory)).name
    out = Path(out)
    paths = [out / f"{name}-{kind}.gguf", out / f"mmproj-{name}-{mmproj_kind}.gguf"]
    for path in paths:
        if path.exists() and not force:
            raise CheckpointError(f"{path} exists already; choose another folder or replace it with --force")
    total = sum(tensor.nbytes for tensor in view.tensors.values())

    def advance(num_bytes: int) -> None:
        if progress:
            progress(num_bytes, total)

    rows = view.tensors[f"{language_model.PREFIX}lm_head.weight"].shape[0]
    notes: list[str] = []

    def describe_language_model(writer: gguf.GGUFWriter) -> None:
        writer.add_name(name)
        notes.extend(language_model.add_fields(writer, {**language, "vocab_size": rows}))
        add_vocabulary(writer, view.directory, rows, view.config["template"])

    def describe_vision(writer: gguf.GGUFWriter) -> None:
        writer.add_name(name)
        vision.add_fields(writer, view.config)

    model = language_model.tensors(language, view.tensors)
    _write(paths[0], language_model.architecture(language), kind, model, describe_language_model, advance)
    projector = vision.tensors(view.config, view.tensors)
    _write(paths[1], "clip", mmproj_kind, projector, describe_vision, advance)
    if not view.config["use_thumbnail"] or vision.tile_limits(view.config)[1] == 1:
        notes.append(NEEDS_OVERVIEW)
    return Converted(paths[0], paths[1], sum(path.stat().st_size for path in paths), notes)


def _write(
    path: Path,
    architecture: str,
    kind: str,
    tensors: Mapping[str, LazyTensor],
    describe: Callable[[gguf.GGUFWriter], None],
    advance: Callable[[int], None],
) -> None:
    """Writes one file.

    Args:
        path: of the file.
        architecture: its name in the file.
        kind: one of ``TYPES``.
        tensors: by their names in the file.
        describe: writes the other fields.
        advance: called with the number of bytes read.
    """
    num_layers = 1 + max(_layer(name) for name in tensors)
    encoded = [
        Encoded(name, tensor, choose_type(kind, name, tensor.shape, _layer(name), num_layers), advance)
        for name, tensor in tensors.items()
    ]
    with staged_file(path, sum(each.nbytes for each in encoded)) as stage:
        writer = gguf.GGUFWriter(str(stage), architecture)
        try:
            describe(writer)
            writer.add_file_type(TYPES[kind][0])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for each in encoded:
                shape = each.tensor.shape
                writer.add_tensor_info(each.name, shape, float, each.nbytes, raw_dtype=each.type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for each in encoded:
                writer.write_tensor_data(each)
        finally:
            writer.close()


def _layer(name: str) -> int:
    """The layer that a tensor is in; -1 for those outside."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)
