"""What an entry of `data_paths` names, as records that are read one by one (`RecordSource`).

| entry | records |
|---|---|
| a.json, a.jsonl | `index.OffsetIndex`, by the offset of each in the file |
| a.json.gz, a.jsonl.gz, a.jsonl.zst | the same, of the content, which is unpacked into the cache (`compressed`) |
| a.parquet, a folder or pattern of them | `tables.TableRecords`, rows with or without their images |
| a.tar, a folder or pattern of them | `webdataset.WebDatasetRecords`, samples with their images |
| a folder that datasets' `save_to_disk` wrote | the same, of Arrow files |
| the URL of one of these files | `fetch.FetchedRecords`, of a copy in the cache |
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ...data_names import WILDCARDS, is_pattern, is_url, local_path, masked
from ..errors import DataError, SettingError
from ..images.media import ImageFolder
from ..stores.fetch import FetchedRecords, fetch
from ..stores.store import Store, StoreSettings
from .compressed import is_compressed, unpack
from .index import open_index
from .shard_names import expand, list_folder
from .table_files import ArrowTable, ParquetTable, find_arrow_files
from .tables import TableRecords
from .webdataset import WebDatasetRecords

PACKED_SUFFIXES = (".gz", ".zst")
PARQUET = b"PAR1"  # its first bytes
SHARDS = (".parquet", ".tar")  # of which a folder may consist


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


def open_records(
    path: str | os.PathLike, cache_dir: str | os.PathLike, stores: StoreSettings | None = None
) -> RecordSource:
    """The records that an entry of `data_paths` names.

    Args:
        cache_dir: where indices, and copies of files in stores, are kept.
        stores: how stores are read.

    Raises:
        SettingError, RecordError: it names none, or they can't be read.
    """
    path = local_path(os.fspath(path))
    if is_url(path):
        return _open_url(path, cache_dir, stores)
    if os.path.isdir(path) or is_pattern(path):
        return _open_many(path, cache_dir)
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        return open_index(path, cache_dir)  # which says what is wrong
    if _begins_with(path, PARQUET):
        return TableRecords(path, [path], ParquetTable)
    if path.endswith(".tar"):
        return WebDatasetRecords(path, [path], cache_dir)
    if is_compressed(path):
        return _open_compressed(path, cache_dir)
    return open_index(path, cache_dir)


def stem_of(path: str | os.PathLike) -> str:
    """The name of a file without its suffixes, by which reports call it."""
    name = Path(path.partition("?")[0] if is_url(path) else path)
    return Path(name.stem).stem if name.suffix in PACKED_SUFFIXES else name.stem


def folder_of(path: str | os.PathLike) -> Path | str:
    """The folder against which names of images are resolved without an image folder."""
    path = local_path(path)
    if is_url(path):
        base, question, query = path.partition("?")
        return base.rpartition("/")[0] + question + query
    return Path(path) if os.path.isdir(path) else Path(path).parent


def _open_many(path: str, cache_dir: str | os.PathLike) -> RecordSource:
    """The records of a folder of shards, of a pattern, or of a dataset that `datasets` saved."""
    if os.path.isdir(path):
        saved = find_arrow_files(path)
        if saved is not None:
            return TableRecords(path, saved, ArrowTable)
        files = list_folder(path, SHARDS)
    else:
        files = expand(path)
    suffixes = {os.path.splitext(file)[1] for file in files}
    if suffixes == {".parquet"}:
        return TableRecords(path, files, ParquetTable)
    if suffixes == {".tar"}:
        return WebDatasetRecords(path, files, cache_dir)
    if not files:
        remedy = "name the annotation file in it, or the folder that holds the shards itself"
        problem = f"is a folder, not an annotation file, and holds no {' or '.join(SHARDS)}"
        raise SettingError("annotation_file", problem, remedy, f"{path}:1")
    remedy = "name them one by one in data_paths"
    raise SettingError(
        "data_paths", f"names {', '.join(sorted(suffixes))} files; shards are {' or '.join(SHARDS)}", remedy, path
    )


def _open_url(url: str, cache_dir: str | os.PathLike, stores: StoreSettings | None) -> RecordSource:
    if any(char in url.partition("?")[0] for char in WILDCARDS):
        raise SettingError("data_paths", "patterns of URLs aren't looked up", "name the files one by one", masked(url))
    store = Store(url, stores, "data_paths")
    return FetchedRecords(lambda copy: open_records(copy, cache_dir), fetch(store, cache_dir), url)


def _begins_with(path: str, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _open_compressed(path: str, cache_dir: str | os.PathLike) -> RecordSource:
    unpacked = unpack(path, cache_dir)
    try:
        return open_index(path, cache_dir, unpacked=unpacked)
    except DataError as error:
        raise type(error)(error.reason, error.problem, error.remedy, error.place.replace(unpacked, path)) from None
