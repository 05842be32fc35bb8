"""What an entry of `data_paths` names, as records that are read one by one (`RecordSource`).

| entry | records |
|---|---|
| a.json, a.jsonl | `json_index.OffsetIndex`, by the offset of each in the file |
| a.json.gz, a.jsonl.gz, a.jsonl.zst | the same, of the content, which is unpacked into the cache |
| a.parquet, a.tar, a folder or pattern of them, a folder of datasets' `save_to_disk` | `tables.TableRecords` |
| the URL of one of these files | the same, of a copy in the cache |
"""

import glob
import os
import re
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ...errors import SettingError
from ...files import (
    WILDCARDS,
    get_cache_dir,
    is_pattern,
    is_url,
    local_path,
    locked,
    masked,
    text_hash,
    write_whole,
    writing,
)
from ...files import shown as shown_url
from ..stores import localize
from .json_index import open_index, stamp_of
from .tables import TableRecords, natural

PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # first bytes of gzip and zstd
PACKED_SUFFIXES = (".gz", ".zst")
KINDS = {".parquet": "parquet", ".tar": "tar"}  # shards of which a folder may consist
NUMBERED = re.compile(r"(?P<name>.*)-(?P<number>\d+)-of-(?P<total>\d+)\W.*")
SPLITS = re.compile(r"(train|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)


class RecordSource(Protocol):
    """The records of one entry of `data_paths`, read at random. It crosses to other processes by pickle.

    Attributes:
        path: the entry, as messages call it.
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
            SourceError: the file has changed or gone.
        """

    def fingerprint(self) -> str:
        """A hash that changes with the records, for the keys of caches."""


def open_records(
    path: str | os.PathLike,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
) -> RecordSource:
    """The records that an entry of `data_paths` names.

    Args:
        options: fsspec's `storage_options`.
        columns: names here -> names in the records, see `foreign.renamed`.

    Raises:
        SettingError, RecordError: it names none, or they can't be read.
        SourceError: a store doesn't answer.
    """
    path = local_path(os.fspath(path))
    if not is_url(path):
        return _open(path, path, columns)
    if any(char in path.partition("?")[0] for char in WILDCARDS):
        raise SettingError("data_paths", "patterns of URLs aren't looked up", "name the files one by one", masked(path))
    copy = localize(path, options)
    return _open(shown_url(path), copy, columns)


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


def _open(shown: str, path: str, columns: Mapping[str, str] | None) -> RecordSource:
    """The records of a file or folder that messages call `shown`."""
    if os.path.isdir(path) or is_pattern(path):
        return _open_many(path, columns)
    head = _head(path, shown)
    kind = "parquet" if head[:4] == b"PAR1" else "tar" if head[257:262] == b"ustar" else None
    if kind:
        return TableRecords(shown, kind, [path], columns)
    file = _unpack(path, shown) if head.startswith(PACKED) else path
    return open_index(shown, file=file, columns=columns)


def _head(path: str, shown: str) -> bytes:
    """The first bytes of an annotation file.

    Raises:
        SettingError: it isn't there, can't be read, or is no file: a pipe would be waited for without end.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            problem = "is no file but a pipe, a socket or a device, which can't be read at random"
            raise SettingError("annotation_file", problem, "write its content to a file", shown)
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        problem = f"the annotation file can't be read ({error.strerror})"
        raise SettingError("annotation_file", problem, "correct data_paths, or the file's mode", f"{shown}:1") from None


def _open_many(path: str, columns: Mapping[str, str] | None) -> RecordSource:
    """The records of a folder of shards, of a pattern, or of a dataset that `datasets` saved."""
    if os.path.isfile(os.path.join(path, "state.json")) or os.path.isfile(os.path.join(path, "dataset_dict.json")):
        files = sorted(glob.glob(os.path.join(glob.escape(path), "*.arrow")))
        return TableRecords(path, "arrow", files, columns)
    names = os.listdir(path) if os.path.isdir(path) else ()
    files = [os.path.join(path, name) for name in names if name[0] not in "._"] or glob.glob(path)
    shards = {kind: [file for file in files if file.endswith(suffix)] for suffix, kind in KINDS.items()}
    found = [(kind, sorted(files, key=natural)) for kind, files in shards.items() if files]
    if len(found) != 1 or (not names and len(found[0][1]) != len(files)):
        problem = f"holds no shards of one kind ({' or '.join(KINDS)})"
        raise SettingError("data_paths", problem, "name the annotation file, or the shards of one kind", path)
    kind, files = found[0]
    _check_shards(path, files)
    return TableRecords(path, kind, files, columns)


def _check_shards(path: str, files: list[str]) -> None:
    """Refuse a part of a set, and training and test data together.

    Raises:
        SettingError: names as `train-00000-of-00004.parquet` say that shards are missing, or name several splits.
    """
    names = [os.path.basename(file) for file in files]
    splits = sorted({match[1].lower() for match in map(SPLITS.match, names) if match})
    if len(splits) > 1:
        remedy = f"name one of them, e.g. {os.path.join(os.path.dirname(files[0]), splits[0])}*"
        raise SettingError("data_paths", f"holds several splits ({', '.join(splits)})", remedy, path)
    counts = Counter((match["name"], int(match["total"])) for match in map(NUMBERED.match, names) if match)
    for (name, total), count in counts.items():
        if count != total and os.path.isdir(path):
            problem = f"{total - count} of the {total} shards of {name!r} are missing"
            raise SettingError("data_paths", problem, f"fetch them, or name those that are there: {path}/*", path)


def _unpack(path: str, shown: str) -> str:
    """The path of the content of a compressed file, which is unpacked where the cache doesn't hold it.

    Raises:
        SettingError: the file is damaged or cut off, or the cache can't be written.
    """
    folder = get_cache_dir() / "unpacked" / text_hash(os.path.realpath(path), str(stamp_of(path)))
    target = folder / stem_of(path)
    with locked(folder.with_suffix(".lock")):
        if not target.exists():
            size = f"{os.path.getsize(path) / 1e6:,.1f} MB"
            print(f"unpacking {shown} ({size}) into {target}", file=sys.stderr, flush=True)
            with writing(target):
                write_whole(target, lambda beside: _decompress(path, shown, beside))
    return str(target)


def _decompress(path: str, shown: str, target: Path) -> None:
    import pyarrow  # heavy; it reads zstd, which Python itself doesn't before 3.14

    with open(path, "rb") as file:
        kind = "gzip" if file.read(2) == PACKED[0] else "zstd"
    try:
        with pyarrow.input_stream(path, compression=kind) as packed, open(target, "wb") as out:
            shutil.copyfileobj(packed, out, 1 << 22)
    except OSError as error:
        if error.errno is not None:  # of the disk, which `writing` explains
            raise
        problem, remedy = f"can't be unpacked ({str(error)[:120]})", "fetch the file again; it seems to be damaged"
        raise SettingError("annotation_file", problem, remedy, f"{shown}:1") from None
