"""What an entry of `data_paths` names, as records that are read one by one (`RecordSource`).

| entry | records |
|---|---|
| a.json, a.jsonl | `index.OffsetIndex`, by the offset of each in the file |
| a.json.gz, a.jsonl.gz, a.jsonl.zst | the same, of the content, which is unpacked into the cache (`compressed`) |
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ..errors import DataError
from ..images.media import ImageFolder
from .compressed import is_compressed, unpack
from .index import open_index

PACKED_SUFFIXES = (".gz", ".zst")


class Reader(Protocol):
    """Reads records in sequence, faster than one by one."""

    def parse(self, row: int) -> object:
        """As `RecordSource.parse`."""


class RecordSource(Protocol):
    """The records of one entry of `data_paths`, read at random. It crosses to other processes by pickle.

    Attributes:
        path: the entry.
    """

    path: str

    def __len__(self) -> int:
        """Number of records."""

    def source(self, row: int) -> str:
        """`file:line` (or row, or sample) of a record, for messages."""

    def line(self, row: int) -> int:
        """The number in `source`, counted from 1."""

    def parse(self, row: int) -> object:
        """The decoded record, as JSON would give it.

        Raises:
            RecordError: it can't be read.
        """

    def reader(self) -> AbstractContextManager[Reader]:
        """For reading records in sequence."""

    def fingerprint(self, cache_dir: str) -> str:
        """A hash that changes with the records, for the keys of caches."""

    def own_images(self, folder: ImageFolder) -> ImageFolder:
        """What gives images by the names in these records; `folder` is the entry of `image_folders`."""


def open_records(path: str | os.PathLike, cache_dir: str | os.PathLike) -> RecordSource:
    """The records that an entry of `data_paths` names.

    Raises:
        SettingError, RecordError: it names none, or they can't be read.
    """
    path = os.fspath(path)
    if os.path.isfile(path) and os.access(path, os.R_OK) and is_compressed(path):
        return _open_compressed(path, cache_dir)
    return open_index(path, cache_dir)


def stem_of(path: str | os.PathLike) -> str:
    """The name of a file without its suffixes, by which reports call it."""
    name = Path(path)
    return Path(name.stem).stem if name.suffix in PACKED_SUFFIXES else name.stem


def folder_of(path: str | os.PathLike) -> Path:
    """The folder against which names of images are resolved without an image folder."""
    return Path(path).parent


def _open_compressed(path: str, cache_dir: str | os.PathLike) -> RecordSource:
    unpacked = unpack(path, cache_dir)
    try:
        return open_index(path, cache_dir, unpacked=unpacked)
    except DataError as error:
        raise type(error)(error.reason, error.problem, error.remedy, error.place.replace(unpacked, path)) from None
