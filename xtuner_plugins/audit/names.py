"""Compares the names in records with the files of image folders; no image is opened."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from ..errors import DataError
from .check import Checked

SHOWN = 5  # names of each kind


class FolderCount(NamedTuple):
    """An image folder beside the names in records."""

    folder: str
    num_files: int
    num_named: int
    missing: list[str]  # names that no file has
    superfluous: list[str]  # files that no record names

    def __str__(self) -> str:
        counts = f"{len(self.missing):,} of them missing; {len(self.superfluous):,} superfluous"
        said = f"{self.folder}: {self.num_files:,} files; records name {self.num_named:,} different ones, {counts}"
        for kind, names in (("missing", self.missing), ("superfluous", self.superfluous)):
            if names:
                said += f"\n  {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        return said


def count_folders(dataset: Checked, progress: Callable[[int], None] = lambda done: None) -> list[FolderCount]:
    """Compare each image folder on this machine with the names in the records of all files that share it.

    Records that can't be read name nothing here. Folders of frames count as the files in them.

    Args:
        progress: called with the number of records read since the last call.
    """
    named: dict[str, set[str]] = {}
    for number, source in enumerate(dataset.sources):
        folder = getattr(source.folder, "folder", None)
        is_here = isinstance(folder, str) and os.path.isdir(folder)
        names = named.setdefault(os.path.realpath(folder), set()) if is_here else set()
        for row in range(len(source.index)):
            with suppress(DataError):  # the check of the record itself complains
                media = dataset.record(number, row).media
                names.update(os.path.normpath(each.name) for each in media if isinstance(each.name, str))
            progress(1)
    return [_compare(folder, names) for folder, names in named.items()]


def _compare(folder: str, names: set[str]) -> FolderCount:
    files = {
        os.path.relpath(os.path.join(inside, name), folder) for inside, _, here in os.walk(folder) for name in here
    }
    missing = sorted(name for name in names - files if not os.path.exists(os.path.join(folder, name)))
    superfluous = sorted(name for name in files - names if os.path.dirname(name) not in names)  # no frames of a video
    return FolderCount(folder, len(files), len(names), missing, superfluous)
