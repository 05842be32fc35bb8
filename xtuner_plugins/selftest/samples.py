"""The records that a self-test trains on: the first usable ones of the config's own files, else toy records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data_names import is_url, masked, names_data
from ..datasets import MultimodalDataset, PreferenceDataset
from ..datasets.errors import DataError
from ..datasets.images.media import Blob
from ..datasets.meta_file import OTHERS, expand_metas
from ..datasets.mixture import Source
from ..datasets.records.opening import folder_of
from ..datasets.stores.stored_images import StoreImages
from ..toy.small_data import write_dataset

LOOKED_AT = 200  # records of a file, before it is taken to have no usable one
PER_FILE = ("image_folders", "dataset_settings")
LEFT_OUT = ("type", "base", "data_paths", "repeat_times", "reject_list", "cache_dir", "backend_args", *PER_FILE)


@dataclass(frozen=True)
class Samples:
    """Annotation files with their settings, one entry per file, and what is in them.

    Attributes:
        settings: ``data_paths``, ``image_folders`` and ``dataset_settings`` of a `MultimodalDataset`.
        description: Where they come from.
        is_toy: Whether they are toy records.
        lengths: Tokens and tiles of every record.
    """

    settings: dict[str, list]
    description: str
    is_toy: bool
    lengths: list[tuple[int, int]]


def take_samples(dataset: Mapping[str, Any], base: Path, folder: Path, wanted: int) -> Samples:
    """The first usable records of a config's files, from each in turn; toy records where there are none.

    Args:
        dataset: The config's ``train_dataloader.dataset``.
        base: The tiny model directory.
        folder: Gets annotation files; images stay where they are.
        wanted: Number of records.
    """
    files = _files(dataset)
    here = [row for row in files if names_data(row["data_paths"])]
    if here:
        try:
            found = _own(dataset, here, base, folder, wanted)
        except DataError as error:
            return toy_samples(dataset, base, folder, wanted, why=f"the config's can't be read: {error}")
        if found is not None:
            return found
        return toy_samples(dataset, base, folder, wanted, why="no record of the config's can be trained on")
    return toy_samples(dataset, base, folder, wanted, why=f"{files[0]['data_paths']} isn't there")


def toy_samples(
    dataset: Mapping[str, Any], base: Path, folder: Path, wanted: int, *, why: str, alternating: bool = False
) -> Samples:
    """Toy records, every fourth without an image, or every second where they are to be alternating."""
    options = {"text_only": lambda index: index % 2 == 1} if alternating else {}
    path, images = write_dataset(folder / "toy", wanted, **options)
    settings = {"data_paths": [str(path)], "image_folders": [str(images)], "dataset_settings": None}
    opened = _open(dataset, settings, base, folder)
    lengths = [_length(opened, 0, row) for row in range(wanted)]
    return Samples(settings, f"{wanted} toy records ({why})", True, lengths)


def _files(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict per annotation file with its own settings."""
    paths, folders, _, settings = expand_metas(dataset["data_paths"], *(dataset.get(name) for name in OTHERS))
    paths = [paths] if isinstance(paths, str) else list(paths)
    given = {"image_folders": folders, "dataset_settings": settings}

    def column(name: str) -> list:
        value = given[name]
        return list(value) if isinstance(value, (list, tuple)) else [value] * len(paths)

    columns = {"data_paths": paths, **{name: column(name) for name in PER_FILE}}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    shared = dataset.get("backend_args")
    for row in rows:  # written where it has a meaning: files on a disk refuse options of stores
        if shared and ("backend" in shared or is_url(row["data_paths"]) or is_url(row["image_folders"])):
            row["dataset_settings"] = {"backend_args": shared, **(row["dataset_settings"] or {})}
    return rows


def _own(
    dataset: Mapping[str, Any], files: list[dict[str, Any]], base: Path, folder: Path, wanted: int
) -> Samples | None:
    opened = _open(dataset, {key: [row[key] for row in files] for key in files[0]}, base, folder)
    taken: list[list[dict]] = [[] for _ in files]
    lengths: list[tuple[int, int]] = []
    streams = [_usable(opened, number, folder / f"own_{number}_images") for number in range(len(files))]
    while len(lengths) < wanted and any(streams):
        for number, stream in enumerate(streams):
            record = next(stream, None) if stream and len(lengths) < wanted else None
            if record is None and len(lengths) < wanted:
                streams[number] = None
            elif record is not None:
                taken[number].append(record[0])
                lengths.append(record[1])
    if not lengths:
        return None
    rows = [(row, records) for row, records in zip(files, taken, strict=True) if records]
    settings: dict[str, list] = {"data_paths": [], "image_folders": [], "dataset_settings": []}
    for number, (row, records) in enumerate(rows):
        path = folder / f"own_{number}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        settings["data_paths"].append(str(path))
        is_apart = _has_own_images(opened.sources[files.index(row)])
        parent = folder_of(row["data_paths"])
        settings["image_folders"].append(None if is_apart else str(Path(row["image_folders"] or parent).resolve()))
        own = row["dataset_settings"] or {}
        settings["dataset_settings"].append({key: own[key] for key in own if key != "backend_args"} or None)
    names = ", ".join(masked(row["data_paths"]) for row, _ in rows)
    return Samples(settings, f"the first {len(lengths)} usable records of {names}", False, lengths)


def _has_own_images(source: Source) -> bool:
    """Whether images lie in its rows or samples or in a store, rather than in an image folder alone."""
    return hasattr(source.folder, "inner") or isinstance(source.folder, StoreImages)


def _usable(dataset: MultimodalDataset, number: int, folder: Path) -> Iterator[tuple[dict, tuple[int, int]]]:
    source = dataset.sources[number]
    index = source.index
    for row in range(min(LOOKED_AT, len(index))):
        try:
            record, lengths = index.parse(row), _length(dataset, number, row)
            yield (_with_files(record, source.folder, folder) if _has_own_images(source) else record), lengths
        except DataError:  # `tools/check_data.py` tells of them
            continue


def _with_files(record: dict, images: Any, folder: Path) -> dict:
    """The record with absolute names of images, of which those in its row or sample are written to ``folder``."""

    def write(name: object) -> object:
        if isinstance(name, list):
            return [write(each) for each in name]
        if not isinstance(name, str):
            return name
        found = images.resolve(name)
        if not isinstance(found, Blob):
            return str(Path(found).resolve())
        folder.mkdir(exist_ok=True)
        path = folder / f"{sum(1 for _ in folder.iterdir())}"
        path.write_bytes(found.data)
        return str(path.resolve())

    keys = ("image", "images", "video", "videos")
    return {key: write(value) if key in keys else value for key, value in record.items()}


def _length(dataset: MultimodalDataset, number: int, row: int) -> tuple[int, int]:
    sample = dataset.load(number, row)
    return len(sample["input_ids"]), sample["num_tiles"]


def _open(dataset: Mapping[str, Any], files: Mapping[str, Any], base: Path, folder: Path) -> MultimodalDataset:
    kept = {key: value for key, value in dataset.items() if key not in LEFT_OUT}
    is_preference = str(dataset.get("type")).endswith(PreferenceDataset.__name__)
    kind = PreferenceDataset if is_preference else MultimodalDataset
    return kind(str(base), **files, **kept, cache_dir=str(folder / "cache"))
