"""The downloaded files of a public data set: one, several of one shape, or those that a meta.json of InternVL names.

    {"ai2d": {"root": "MMPR-v1.2/images/ai2d", "annotation": "MMPR-v1.2/annotations/ai2d.jsonl",
              "repeat_time": 0.5, "length": 12413}}

Paths in a meta.json are those of its author's disk. Annotation files are looked for by their names in `annotations/`
beside it, and images are named relative to the folder `images` in `root`.
"""

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..cache import get_cache_dir
from ..errors import RecordError, SettingError
from ..records.json_index import OffsetIndex, open_index
from ..records.parquet import ParquetRows
from .published import Recipe


@dataclass(frozen=True)
class Part:
    """A file with records.

    Attributes:
        path: of it.
        index: its records.
        prefix: of its images' names.
        repeat: how often it is used; a fraction is a random part, the same at every call.
        length: its number of records as published; None where nobody says so.
    """

    path: Path
    index: OffsetIndex | ParquetRows
    prefix: str = ""
    repeat: float = 1
    length: int | None = None

    def rows(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """(`file:line`, a function that reads the record) of each record that is used."""
        if isinstance(self.index, ParquetRows):
            for number, row in enumerate(self.index):
                yield self.index.source(number), lambda row=row: row
            return
        for number in self._numbers():
            yield self.index.source(number), lambda number=number: self.index.parse(number)

    def _numbers(self) -> Iterator[int]:
        total = len(self.index)
        fraction, whole = math.modf(self.repeat)
        for _ in range(int(whole)):
            yield from range(total)
        yield from sorted(random.Random(self.path.name).sample(range(total), int(total * fraction)))

    def __len__(self) -> int:
        total = len(self.index)
        fraction, whole = math.modf(self.repeat)
        return int(whole) * total + int(total * fraction)


def open_parts(recipe: Recipe, source: str | os.PathLike) -> tuple[list[Part], list[str]]:
    """The data set's files, and complaints about those that can't be read.

    Raises:
        SettingError: there is no such file, the folder doesn't hold it, or it is none of the data set's.
        RecordError: a JSON array that is cut off.
    """
    paths = find_sources(recipe, source)
    if recipe.has_meta:
        return _parts_of_meta(paths[0])
    if recipe.embedded:
        return [Part(path, ParquetRows(path, (*recipe.columns, recipe.embedded))) for path in paths], []
    return [Part(path, open_index(str(path), get_cache_dir())) for path in paths], []


def find_sources(recipe: Recipe, source: str | os.PathLike) -> list[Path]:
    """The downloaded files, by name.

    Raises:
        SettingError: there is no such file, or the folder doesn't hold it.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        for pattern in (recipe.file, os.path.basename(recipe.file)):
            if found := sorted(file for file in path.glob(pattern) if file.is_file()):
                return found
        raise SettingError(
            "source", f"folder {str(path)!r} holds no {recipe.file}", "download it, or name the file itself"
        )
    raise SettingError("source", f"{str(path)!r} isn't there", f"name the downloaded {recipe.file}, or its folder")


def _parts_of_meta(meta: Path) -> tuple[list[Part], list[str]]:
    try:
        entries = json.loads(meta.read_text(encoding="utf-8"))
    except ValueError as error:  # also of UTF-8
        raise SettingError("shape", f"{meta}: no JSON ({error})", "download it again") from None
    if not isinstance(entries, dict) or not entries:
        raise SettingError("shape", f"{meta}: not an object of data sets", "name the data set's own meta.json")
    parts, complaints = [], []
    for name, entry in entries.items():
        try:
            parts.append(_part(meta, name, entry))
        except (SettingError, RecordError) as error:
            complaints.append(str(error))
    if not parts:
        raise SettingError("source", f"no annotation file of {meta} can be read; the first: {complaints[0]}")
    return parts, complaints


def _part(meta: Path, name: str, entry: object) -> Part:
    where = f"{meta}: {name}"
    entry = entry if isinstance(entry, dict) else {}
    root, annotation, repeat = entry.get("root"), entry.get("annotation"), entry.get("repeat_time", 1)
    if not isinstance(root, str) or not isinstance(annotation, str):
        raise SettingError("shape", f"{where}: no 'root' or no 'annotation'", "name the data set's own meta.json")
    if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 <= repeat < math.inf:
        raise SettingError("shape", f"{where}: repeat_time is {repeat!r}", "give a number from 0 on")
    folders = PurePosixPath(root).parts
    if "images" not in folders:
        raise SettingError("shape", f"{where}: root {root!r} has no folder 'images'", "correct it in meta.json")
    prefix = "".join(f"{folder}/" for folder in folders[folders.index("images") + 1 :])
    file = PurePosixPath(annotation).name
    path = next((path for path in (meta.parent / "annotations" / file, meta.parent / file) if path.is_file()), None)
    if path is None:
        raise SettingError(
            "source", f"{where}: no annotations/{file}", f"unpack annotations.zip in {str(meta.parent)!r}"
        )
    length = entry.get("length")
    return Part(
        path, open_index(str(path), get_cache_dir()), prefix, repeat, length if isinstance(length, int) else None
    )
