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
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import SettingError
from ...files import build_once, get_cache_dir, is_pattern, is_url, local_path, shown, text_hash
from ..images.media import natural
from ..stores import localize
from .json_index import OffsetIndex, open_index, stamp_of
from .tables import TableRecords

PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}  # by the first bytes
KINDS = {".parquet": "parquet", ".tar": "tar"}  # shards of which a folder may consist
NUMBERED = re.compile(r"(?P<name>.*)-(?P<number>\d+)-of-(?P<total>\d+)\W.*")
SPLITS = re.compile(r"(train|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)

RecordSource = OffsetIndex | TableRecords  # records that are read at random; crosses to other processes by pickle


def open_records(
    path: str | os.PathLike, options: Mapping[str, Any] | None = None, columns: Mapping[str, str] | None = None
) -> RecordSource:
    """The records that an entry of `data_paths` names.

    Args:
        options: fsspec's `storage_options`.
        columns: names here -> names in the records, see `foreign.renamed`.

    Raises:
        SettingError, RecordError: it names none, or they can't be read.
        SourceError: a store doesn't answer.
    """
    named = path = local_path(os.fspath(path))
    if is_url(path):
        named, path = shown(path), localize(path, options)
    elif os.path.isdir(path) or is_pattern(path):
        return _open_many(path, columns)
    head = _head(path, named)
    if head[:4] == b"PAR1" or head[257:262] == b"ustar":
        return TableRecords(named, "parquet" if head[:4] == b"PAR1" else "tar", [path], columns)
    packed = PACKED.get(head[:2])
    return open_index(named, _unpack(path, named, packed) if packed else path, columns)


def stem_of(path: str | os.PathLike) -> str:
    """The name of a file without its suffixes, by which reports call it."""
    name = Path(path.partition("?")[0] if is_url(path) else path)
    return Path(name.stem).stem if name.suffix in (".gz", ".zst") else name.stem


def folder_of(path: str | os.PathLike) -> Path | str:
    """The folder against which names of images are resolved without an image folder."""
    path = local_path(path)
    if is_url(path):
        base, question, query = path.partition("?")
        return base.rpartition("/")[0] + question + query
    return Path(path) if os.path.isdir(path) else Path(path).parent


def _head(path: str, named: str) -> bytes:
    """The first bytes of an annotation file; a pipe would be waited for without end."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                return file.read(512)
        problem = "is no file but a pipe, a socket or a device, which can't be read at random"
        raise SettingError("annotation_file", problem, "write its content to a file", named)
    except OSError as error:
        problem = f"the annotation file can't be read ({error.strerror})"
        raise SettingError("annotation_file", problem, "correct the path, or the file's mode", f"{named}:1") from None


def _open_many(path: str, columns: Mapping[str, str] | None) -> RecordSource:
    """The records of a folder of shards, of a pattern, or of a dataset that `datasets` saved."""
    inside = os.path.join(glob.escape(path), "*")
    if any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json")):
        return TableRecords(path, "arrow", glob.glob(f"{inside}.arrow"), columns)
    is_folder = os.path.isdir(path)
    files = sorted(glob.glob(inside if is_folder else path), key=natural)
    shards = {kind: [file for file in files if file.endswith(suffix)] for suffix, kind in KINDS.items()}
    found = [(kind, own) for kind, own in shards.items() if own]
    if len(found) != 1 or not (is_folder or found[0][1] == files):
        problem = f"holds no shards of one kind ({' or '.join(KINDS)})"
        raise SettingError("data_paths", problem, "name the annotation file, or the shards of one kind", path)
    _check_shards(path, found[0][1], is_folder)
    return TableRecords(path, *found[0], columns)


def _check_shards(path: str, files: list[str], is_folder: bool) -> None:
    """Refuse a part of a set (`train-00000-of-00004.parquet`), and training and test data together."""
    names = [os.path.basename(file) for file in files]
    splits = sorted({match[1].lower() for match in map(SPLITS.match, names) if match})
    if len(splits) > 1:
        remedy = f"name one of them, e.g. {os.path.join(os.path.dirname(files[0]), splits[0])}*"
        raise SettingError("data_paths", f"holds several splits ({', '.join(splits)})", remedy, path)
    counts = Counter((match["name"], int(match["total"])) for match in map(NUMBERED.match, names) if match)
    for (name, total), count in counts.items():
        if is_folder and count != total:
            problem = f"{total - count} of the {total} shards of {name!r} are missing"
            raise SettingError("data_paths", problem, f"fetch them, or name those that are there: {path}/*", path)


def _unpack(path: str, named: str, kind: str) -> str:
    """The path of the content of a compressed file, which is unpacked where the cache doesn't hold it."""
    import pyarrow  # heavy; it reads zstd, which Python itself doesn't before 3.14

    def decompress(beside: Path) -> None:
        try:
            with pyarrow.input_stream(path, compression=kind) as packed, open(beside, "wb") as out:
                shutil.copyfileobj(packed, out, 1 << 22)
        except OSError as error:
            if error.errno is not None:  # of the disk
                raise
            problem, remedy = f"can't be unpacked ({str(error)[:120]})", "fetch the file again; it seems to be damaged"
            raise SettingError("annotation_file", problem, remedy, f"{named}:1") from None

    key = text_hash(os.path.realpath(path), str(stamp_of(path)))
    target = get_cache_dir() / "unpacked" / key / stem_of(path)
    told = f"unpacking {named} ({os.path.getsize(path) / 1e6:,.1f} MB) into {target}"
    return str(build_once(target, decompress, told))
