"""The official code's meta file in `data_paths`: annotation files with their image folders and settings.

    {"ai2d": {"root": "images/ai2d", "annotation": "annotations/ai2d.jsonl", "repeat_time": 2, "length": 12413,
              "data_augment": false, "max_dynamic_patch": 12}}

`annotation`, `root` and `repeat_time` become entries of `data_paths`, `image_folders` and `repeat_times` (a fraction is
a random part, of which the official code takes the first); the name, `max_dynamic_patch` and `data_augment` become
`name`, `max_tiles` and `jpeg_quality` (of the official range) in `dataset_settings`. `length` isn't used, as there.
Paths are relative to the working directory, as in the official code, or else to the meta file's folder.
"""

import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmengine.logging import print_log

from ..errors import DataError, SettingError
from ..files import is_url
from .images.tiles import OFFICIAL_QUALITY
from .records.json_index import parse_json

HEAD = 1 << 16  # bytes that show whether a file may be a meta file
FIRST_ENTRY = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{')
KEYS = {  # whether a value can be used, and what it is
    "root": (lambda value: isinstance(value, str), "a path"),
    "annotation": (lambda value: isinstance(value, str), "a path"),
    "repeat_time": (lambda value: type(value) in (int, float) and 0 <= value < math.inf, "a number, 0 or more"),
    "data_augment": (lambda value: isinstance(value, bool), "true or false"),
    "max_dynamic_patch": (lambda value: value is None or type(value) is int and value > 0, "a number above 0"),
    "length": (lambda value: True, ""),
}


class Entry(NamedTuple):
    """An annotation file with what `MultimodalDataset`'s settings say of it."""

    path: str | os.PathLike
    image_folders: object = None
    repeat_times: object = None
    dataset_settings: object = None


def list_files(data_paths, image_folders=None, repeat_times=None, dataset_settings=None) -> list[Entry]:
    """The annotation files of a mixture, those that meta files name in their places; arguments as of the dataset.

    Raises:
        SettingError: no path, a list of another length, a meta file that can't be used, or settings beside one.
    """
    paths = [data_paths] if isinstance(data_paths, (str, os.PathLike)) else list(data_paths or [])
    if not paths:
        raise SettingError("data_paths", "data_paths is empty", "give at least one annotation file")
    columns = [paths]
    for name, value in zip(Entry._fields[1:], (image_folders, repeat_times, dataset_settings), strict=True):
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        columns.append(list(value) if is_list else [value] * len(paths))
        if len(columns[-1]) != len(paths):
            problem = f"{name} has {len(columns[-1])} entries for {len(paths)} data_paths"
            raise SettingError(name, problem, "give one for each")
    files: list[Entry] = []
    for entry in map(Entry, *columns):
        if not isinstance(entry.path, (str, os.PathLike)):
            raise SettingError("data_paths", f"data_paths holds {entry.path!r}", "name annotation files by their paths")
        if not is_meta(entry.path):
            files.append(entry)
            continue
        if given := [name for name in Entry._fields[1:] if getattr(entry, name) is not None]:
            problem = f"{given[0]} is given for the meta file {os.fspath(entry.path)!r}, which has its own"
            raise SettingError(given[0], problem, f"leave {given[0]} out for it (None)")
        files += read_meta(entry.path)
    return files


def is_meta(path: str | os.PathLike) -> bool:
    """Whether a file is a meta file: one object, whose first value is an object, with an `annotation`."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError):  # said where the file is opened
        return False
    return FIRST_ENTRY.match(head) is not None and b'"annotation"' in head and b'"conversations"' not in head


def read_meta(path: str | os.PathLike) -> list[Entry]:
    """The data sets of a meta file, those with a repeat_time of 0 left out; errors as `list_files`."""
    meta = Path(path)
    try:
        found = parse_json(meta.read_bytes(), str(meta))
    except DataError as error:
        raise SettingError("data_paths", f"{meta} is no meta file: {error.problem}", "correct it") from None
    entries = {name: _entry(meta, f"{meta}: {name}", name, entry) for name, entry in found.items()}
    used = [entry for entry in entries.values() if entry.repeat_times]
    if not used:
        raise SettingError("data_paths", f"{meta}: every repeat_time is 0", "use one of the data sets")
    if skipped := [name for name in entries if not entries[name].repeat_times]:
        print_log(f"{meta}: not used, with repeat_time 0: {', '.join(skipped)}", "current", logging.WARNING)
    return used


def _entry(meta: Path, where: str, name: str, entry: object) -> Entry:
    if not isinstance(entry, dict) or "annotation" not in entry:
        problem = f"{where} is no object with an 'annotation'"
        raise SettingError("data_paths", problem, 'write {"root": ..., "annotation": ...}')
    for key, value in entry.items():
        if key not in KEYS:
            raise SettingError("data_paths", f"{where} has {key!r}, which isn't read", f"known are {', '.join(KEYS)}")
        if not KEYS[key][0](value):
            raise SettingError("data_paths", f"{where}: {key} is {value!r}", f"give {KEYS[key][1]}")
    path, root = _find(meta, entry["annotation"]), entry.get("root")
    if not is_url(path) and not os.path.isfile(path):
        raise SettingError("data_paths", f"{where}: annotation {entry['annotation']!r} isn't there", "correct it")
    quality = OFFICIAL_QUALITY if entry.get("data_augment") else None
    settings = {"name": name, "max_tiles": entry.get("max_dynamic_patch"), "jpeg_quality": quality}
    used = {key: value for key, value in settings.items() if value}
    return Entry(path, _find(meta, root) if root else None, entry.get("repeat_time", 1), used)


def _find(meta: Path, name: str) -> str:
    """A path as the official code takes it, or else beside the meta file; a URL stays as it is."""
    places = (Path(name), meta.parent / name)
    return name if is_url(name) else str(next((path for path in places if path.exists()), name))
