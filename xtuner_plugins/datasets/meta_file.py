"""The official code's meta file in `data_paths`: annotation files with their image folders and settings.

    {"ai2d": {"root": "images/ai2d", "annotation": "annotations/ai2d.jsonl", "repeat_time": 2, "length": 12413,
              "data_augment": false, "max_dynamic_patch": 12}}

| key                 | becomes                                                                             |
|---------------------|-------------------------------------------------------------------------------------|
| the data set's name | `name` in `dataset_settings`                                                        |
| `annotation`        | the path in `data_paths`                                                            |
| `root`              | the folder in `image_folders`                                                       |
| `repeat_time`       | `repeat_times`; a fraction is a random part, of which the official code takes the first |
| `max_dynamic_patch` | `max_tiles` in `dataset_settings`                                                   |
| `data_augment`      | `jpeg_quality` in `dataset_settings`, with the official code's range                |
| `length`            | nothing, as in the official code                                                    |

Paths are relative to the working directory, as in the official code, or else to the meta file's folder.
"""

import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import print_log

from ..errors import DataError, SettingError
from .images.jpeg import OFFICIAL
from .records.json_index import parse_json

HEAD = 1 << 16  # bytes that show whether a file may be a meta file
FIRST_ENTRY = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{')
KEYS = ("root", "annotation", "repeat_time", "data_augment", "max_dynamic_patch", "length")
VALUES = {  # whether a value can be used, and what to give instead
    "root": (lambda value: isinstance(value, str) and "\0" not in value, "give a path"),
    "annotation": (lambda value: isinstance(value, str) and value and "\0" not in value, "give a path"),
    "repeat_time": (lambda value: type(value) in (int, float) and 0 <= value < math.inf, "give a number, 0 or more"),
    "data_augment": (lambda value: isinstance(value, bool), "give true or false"),
    "max_dynamic_patch": (
        lambda value: value is None or type(value) is int and value > 0,
        "give a whole number above 0",
    ),
}
OTHERS = ("image_folders", "repeat_times", "dataset_settings")


def expand_metas(data_paths, image_folders=None, repeat_times=None, dataset_settings=None) -> tuple:
    """The four settings with the files of each meta file in its place; unchanged where there is none.

    Args:
        data_paths, image_folders, repeat_times, dataset_settings: as `MultimodalDataset` has them.

    Raises:
        SettingError: a meta file that can't be used, or one of the other settings is given for it.
    """
    given = (data_paths, image_folders, repeat_times, dataset_settings)
    paths = [data_paths] if isinstance(data_paths, (str, os.PathLike)) else list(data_paths or [])
    if not any(map(is_meta, paths)):
        return given
    columns = [_column(value, len(paths)) for value in given[1:]]
    if any(len(column) != len(paths) for column in columns):
        return given  # the caller says which setting has another length
    rows: list[tuple] = []
    for path, *row in zip(paths, *columns, strict=True):
        if not is_meta(path):
            rows.append((path, *row))
            continue
        if clash := [name for name, value in zip(OTHERS, row, strict=True) if value is not None]:
            problem = f"{clash[0]} is given for the meta file {os.fspath(path)!r}, which has its own"
            raise SettingError(clash[0], problem, f"leave {clash[0]} out for it (None)")
        rows += read_meta(path)
    return tuple(map(list, zip(*rows, strict=True)))


def is_meta(path: object) -> bool:
    """Whether a file is a meta file: one object, whose first value is an object, with an `annotation`."""
    if not isinstance(path, (str, os.PathLike)):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError):  # said where the file is opened
        return False
    return FIRST_ENTRY.match(head) is not None and b'"annotation"' in head and b'"conversations"' not in head


def read_meta(path: str | os.PathLike) -> list[tuple[str, str | None, float, dict]]:
    """(annotation file, image folder, repeat, settings) of each data set; those with a repeat_time of 0 are left out.

    Raises:
        SettingError: no JSON, an unknown key, a value that can't be used, or an annotation file that isn't there.
    """
    meta = Path(path)
    try:
        entries = parse_json(meta.read_bytes(), str(meta))
    except OSError as error:
        raise SettingError(
            "data_paths", f"{meta} can't be read ({error.strerror})", "give it read permission"
        ) from None
    except DataError as error:
        raise SettingError("data_paths", f"{meta} is no meta file: {error.problem}", "correct it") from None
    rows = [_row(meta, name, entry) for name, entry in entries.items()]
    skipped = [name for name, row in zip(entries, rows, strict=True) if row[2] == 0]
    if skipped:
        print_log(f"{meta}: not used, with repeat_time 0: {', '.join(skipped)}", "current", logging.WARNING)
    if len(skipped) == len(rows):
        raise SettingError("data_paths", f"{meta}: every repeat_time is 0", "use one of the data sets")
    return [row for row in rows if row[2]]


def _row(meta: Path, name: str, entry: object) -> tuple[str, str | None, float, dict]:
    where = f"{meta}: {name}"
    if not isinstance(entry, dict):
        raise SettingError("data_paths", f"{where} is no object", 'write {"root": ..., "annotation": ...}')
    if "annotation" not in entry:
        raise SettingError("data_paths", f"{where} has no 'annotation'", "give each data set its root and annotation")
    if unknown := [key for key in entry if key not in KEYS]:
        known = ", ".join(KEYS)
        raise SettingError("data_paths", f"{where} has {unknown[0]!r}, which isn't read", f"known are {known}")
    values = {"root": None, "repeat_time": 1, "data_augment": False, "max_dynamic_patch": None, **entry}
    for key, (is_right, remedy) in VALUES.items():
        if not is_right(values[key]):
            raise SettingError("data_paths", f"{where}: {key} is {values[key]!r}", remedy)
    root, annotation, tiles = values["root"], values["annotation"], values["max_dynamic_patch"]
    path = _find(meta, annotation)
    if isinstance(path, Path) and not path.is_file():
        raise SettingError("data_paths", f"{where}: annotation {annotation!r} isn't there", "correct it")
    folder = str(_find(meta, root)) if root else None
    settings = {"max_tiles": tiles, "jpeg_quality": OFFICIAL if values["data_augment"] else None}
    return (
        str(path),
        folder,
        values["repeat_time"],
        {"name": name, **{key: value for key, value in settings.items() if value}},
    )


def _find(meta: Path, name: str) -> Path | str:
    """A path as the official code takes it, or else beside the meta file; an address stays as it is."""
    if "://" in name:
        return name
    return next((path for path in (Path(name), meta.parent / name) if path.exists()), Path(name))


def _column(value: object, length: int) -> list:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * length
