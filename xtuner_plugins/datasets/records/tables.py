"""Rows of tables and samples of tar shards as records, read at random; a record holds its images as `Blob`s.

    Parquet        in place where its largest row group has at most `IN_PLACE` bytes, otherwise one copy
    save_to_disk   the Arrow files that `datasets` wrote, in place
    WebDataset     one copy; members whose names agree up to the first dot of the last part are one sample:
                   000017.jpg  000017.json    the record, about the sample's own images (or 000017.0.jpg ...)
                   000018.jpg  000018.txt     a caption: the question is the image alone

A copy is an Arrow file in the cache directory, memory-mapped by every process. Images are in `image` or `images`:
bytes, structs {bytes, path}, paths in the image folder, or lists of these. A key that a record lacks is null in a
table, and is left out. Turns are a list of structs, a struct of lists, JSON text, or `texts` of `user` and `assistant`
(The Cauldron, FineVision), whose images all stand in front of the first question where no placeholder says otherwise.
"""

import bisect
import hashlib
import io
import itertools
import json
import os
import posixpath
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import DataError, RecordError, SettingError, SourceError
from ...files import get_cache_dir, locked, text_hash, write_whole, writing
from ..images.media import Blob, identify
from .foreign import LISTS, renamed
from .json_index import check_unchanged, parse_json, stamp_of

IN_PLACE = 32 << 20  # bytes of a row group: reading a row decodes its group
GROUPS = 8  # that a process keeps decoded
ROWS = 100  # written at a time
IMAGE = "<image>"
MEDIA = ("image", "images", "video", "videos")
NAMED = ("image", "images", "image_url", "url", "path")  # keys of the images of a tar's sample
SUFFIXES = frozenset("jpg jpeg png webp gif bmp tif tiff heic heif avif ppm".split())


class TableRecords:
    """The rows of one entry of `data_paths`; a `RecordSource` (see `opening`).

    Args:
        path: the entry, as messages call it.
        kind: 'arrow' (a folder of `save_to_disk`), 'parquet' or 'tar'.
        files: whose rows they are, in order.
        columns: names here -> names in the table, see `foreign.renamed`.

    Raises:
        SettingError: a file is damaged, has other columns than the first, or there is no room for a copy.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        files: Sequence[str],
        columns: Mapping[str, str] | None = None,
    ):
        self.path, self.kind, self.columns = path, kind, dict(columns or {})
        try:
            self.stamps = {file: stamp_of(file) for file in files}
            self.rows = self._open(list(files))
            self.num_rows = len(self.rows)
        except (DataError, SourceError):
            raise
        except Exception as error:  # those of pyarrow and datasets have many bases
            text = " ".join(str(error).split())[:160] or type(error).__name__
            problem = f"can't be read as {kind} ({text})"
            raise SettingError("data_paths", problem, "fetch it again, or write it again", path) from None
        if not self.num_rows:
            raise SettingError("data_paths", "holds no rows", "give it records", path)

    def _open(self, files: list[str]) -> Any:
        import datasets

        if self.kind == "arrow":
            rows = datasets.load_from_disk(self.path)
            if isinstance(rows, datasets.DatasetDict):
                problem = f"holds several splits ({', '.join(rows)})"
                raise SettingError(
                    "data_paths", problem, f"name one of them: {self.path}/{next(iter(rows))}", self.path
                )
            return rows.with_format("arrow")
        if self.kind == "parquet":
            rows = ParquetRows(files)
            if rows.largest <= IN_PLACE:
                return rows
            batches, needed = rows.batches(), rows.num_bytes
        else:
            batches, needed = _sample_batches(files), sum(map(os.path.getsize, files))
        copy = get_cache_dir() / "tables" / f"{self.fingerprint()}.arrow"
        with locked(copy.with_suffix(".lock")):
            if not copy.exists():
                _announce(self.path, needed, copy)
                with writing(copy):
                    write_whole(copy, lambda beside: _write(batches, beside))
        return datasets.Dataset.from_file(str(copy)).with_format("arrow")

    def __len__(self) -> int:
        return self.num_rows

    def source(self, row: int) -> str:
        """`entry:row`, counted from 1 over all files of the entry."""
        return f"{self.path}:{row + 1}"

    def line(self, row: int) -> int:
        """The number in `source`."""
        return row + 1

    def fingerprint(self) -> str:
        """Hash of the files' paths, sizes and times."""
        stamps = sorted((file, *stamp) for file, stamp in self.stamps.items())
        return text_hash(json.dumps([stamps, self.columns]))

    def parse(self, row: int) -> object:
        """The raw record of a row.

        Raises:
            RecordError: it can't be read.
            SourceError: its file has changed since it was opened.
        """
        source = self.source(row)
        try:
            part = self.rows[row]
            part.validate(full=True)  # views of a file that nobody has looked at
            record = _without_nulls(part.to_pylist()[0])
        except SourceError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:160] or type(error).__name__
            raise RecordError("table_unreadable", f"can't be read ({text})", "fetch the file again", source) from None
        if self.kind == "tar":
            return renamed(_of_sample(record, source), self.columns)
        return _of_row(renamed(record, self.columns), source)


class ParquetRows:
    """Rows of Parquet files, read in place by groups.

    Attributes:
        largest, num_bytes: bytes of the largest group and of all, decoded.

    Raises:
        SettingError: a file has other columns than the first.
    """

    def __init__(self, files: Sequence[str]):
        import pyarrow.parquet as parquet

        self.groups, self.starts, self.schemas, sizes = [], [0], [], []
        for file in files:
            metadata = parquet.read_metadata(file)
            self.schemas.append(metadata.schema.to_arrow_schema().remove_metadata())
            if set(self.schemas[0].names) != set(names := self.schemas[-1].names):
                problem = f"has the columns {', '.join(names)}, but {files[0]} {', '.join(self.schemas[0].names)}"
                raise SettingError("data_paths", problem, "name files of one form, or one entry for each", file)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                self.groups.append((file, number, stamp_of(file)))
                self.starts.append(self.starts[-1] + group.num_rows)
                sizes.append(group.total_byte_size)
        self.largest, self.num_bytes = max(sizes, default=0), sum(sizes)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, row: int) -> Any:
        number = bisect.bisect_right(self.starts, row) - 1
        return _read_group(*self.groups[number]).slice(row - self.starts[number], 1)

    def batches(self) -> Iterator[Any]:
        """All rows as record batches of one schema."""
        import pyarrow.dataset

        schema = pyarrow.unify_schemas(self.schemas, promote_options="permissive")
        files = pyarrow.dataset.dataset([*dict.fromkeys(file for file, *_ in self.groups)], schema, format="parquet")
        yield from files.to_batches(batch_size=ROWS, batch_readahead=0, fragment_readahead=0, use_threads=False)


@lru_cache(GROUPS)
def _read_group(file: str, number: int, stamp: tuple[int, ...]) -> Any:
    import pyarrow.parquet as parquet

    check_unchanged(file, stamp, file)
    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(number, use_threads=False)  # threads don't survive a fork


def _announce(path: str, needed: int, copy: Path) -> None:
    """Say that a copy is made, or refuse it where the disk has no room.

    Raises:
        SettingError: it hasn't.
    """
    copy.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(copy.parent).free
    sizes = f"{needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free"
    if needed > free:
        remedy = "name a cache directory with more room (XTUNER_PLUGINS_CACHE), or rows in groups of 100"
        raise SettingError("cache", f"no room for a copy of {path} ({sizes})", remedy, str(copy.parent))
    print(f"copying {path} into {copy} ({sizes})", file=sys.stderr, flush=True)


def _write(batches: Iterator[Any], target: Path) -> None:
    import pyarrow

    first = next(batches, None)
    if first is None:
        raise ValueError("no samples")
    with pyarrow.OSFile(str(target), "wb") as file, pyarrow.ipc.new_stream(file, first.schema) as stream:
        for batch in itertools.chain([first], batches):
            stream.write_batch(batch)


def _sample_batches(files: Sequence[str]) -> Iterator[Any]:
    """The samples of tar shards as record batches of {json, txt, images, names}."""
    import pyarrow

    texts, lists = pyarrow.binary(), pyarrow.list_(pyarrow.large_binary())
    schema = pyarrow.schema([("json", texts), ("txt", texts), ("names", pyarrow.list_(pyarrow.string()))])
    schema = schema.append(pyarrow.field("images", lists))
    samples = (sample for file in files for sample in _samples(file))
    while rows := list(itertools.islice(samples, ROWS)):
        yield pyarrow.RecordBatch.from_pylist(rows, schema)


def _samples(path: str) -> Iterator[dict]:
    with tarfile.open(path, "r:") as archive:
        for key, members in itertools.groupby(
            (info for info in archive if info.isfile()), lambda info: _key(info.name)
        ):
            if key.rpartition("/")[2][:2] in ("", "__"):
                continue
            found = {info.name[len(key) + 1 :].lower(): archive.extractfile(info).read() for info in members}
            images = sorted((name for name in found if name.rpartition(".")[2] in SUFFIXES), key=natural)
            yield {
                **{name: found.get(name) for name in ("json", "txt")},
                "names": [f"{key.rpartition('/')[2]}.{name}" for name in images],
                "images": [found[name] for name in images],
            }
        archive.fileobj.seek(archive.offset)
        if any(archive.fileobj.read(tarfile.BLOCKSIZE) or b"\1"):  # tarfile ends in silence at a damaged header
            raise tarfile.ReadError(f"{path} is damaged or cut off at byte {archive.offset:,}")


def _key(name: str) -> str:
    folder, _, last = name.removeprefix("./").rpartition("/")
    return name[: len(name) - len(last)] + last.partition(".")[0]


def _of_sample(sample: dict, source: str) -> object:
    """The record in a sample's .json, about its own images, or its caption.

    Names in the record are those of members, whole or behind the key (`1.jpg`), in its list or in parts of its turns.
    With one image on both sides the name doesn't matter. Other names lead to the image folder.
    """
    names, row = sample.get("names", ()), source.rpartition(":")[2]
    images = [Blob(f"{name} of sample {row}", data) for name, data in zip(names, sample.get("images", ()), strict=True)]
    record = parse_json(sample["json"], source) if "json" in sample else None
    is_record = isinstance(record, dict) and any(key in record for key in (*LISTS, "texts", "chosen"))
    if record is not None and (is_record or "txt" not in sample):
        if not isinstance(record, dict):
            return record
        own = {name.lower().partition(".")[2]: image for name, image in zip(names, images, strict=True)}
        own |= {name.lower(): image for name, image in zip(names, images, strict=True)}
        holders = {key: record[key] for key in ("image", "images", *LISTS) if key in record}
        named: list[str] = []
        _map_names(holders, named.append)
        if len(set(named)) == len(images) == 1:
            own = {_last(named[0]): images[0]}
        record |= _map_names(holders, lambda name: own.get(_last(name), name))
        return _of_row(record if named or not images else record | {"image": images}, source)
    if "txt" not in sample:
        raise RecordError("sample", "neither .json nor .txt", "write the record beside the image", source)
    try:
        text = sample["txt"].decode("utf-8").strip()
    except UnicodeDecodeError:
        raise RecordError("encoding", "its caption isn't UTF-8", "save it as UTF-8", source) from None
    turns = [{"from": "human", "value": "\n".join([IMAGE] * len(images))}, {"from": "gpt", "value": text}]
    return {"image": images, "conversations": turns}


def _map_names(value: Any, change: Callable[[str], Any], key: str = "") -> Any:
    """Lists and turns of a record with the names of images changed."""
    if isinstance(value, dict):
        return {key: _map_names(part, change, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_map_names(part, change, key) for part in value]
    return change(value) if key in NAMED and isinstance(value, str) and not value.startswith("data:") else value


def _last(name: str) -> str:
    return posixpath.basename(name.replace("\\", "/")).lower()


def _of_row(record: dict, source: str) -> dict:
    """A row, as JSON would give it."""
    num_images, row = 0, source.rpartition(":")[2]
    for key in MEDIA:
        if (value := record.get(key)) is not None:
            each = enumerate(value if isinstance(value, list) else [value], 1)
            found = [_medium(medium, f"{key.rstrip('s')} {number} of row {row}") for number, medium in each]
            record[key] = found if isinstance(value, list) else found[0]
            num_images += len(found) * key.startswith("image")
    for key in (*LISTS, "texts"):
        turns = record.get(key)
        if isinstance(turns, str):
            record[key] = parse_json(turns.encode("utf-8", "surrogatepass"), source)
        elif isinstance(turns, dict) and all(isinstance(column, list) for column in turns.values()):
            columns = zip(*turns.values(), strict=False)
            record[key] = [_without_nulls(dict(zip(turns, each, strict=True))) for each in columns]
    if "texts" in record:
        if any(key in record for key in LISTS):
            raise RecordError("two_formats", "both 'texts' and a conversation", "keep one of them", source)
        record["conversations"] = _turns_of(record.pop("texts"), num_images, source)
    return record


def _turns_of(texts: object, num_images: int, source: str) -> list[dict]:
    turns = []
    for number, pair in enumerate(texts if isinstance(texts, list) else [None], 1):
        if not isinstance(pair, dict) or not all(isinstance(pair.get(key), str) for key in ("user", "assistant")):
            problem = f"'texts' has no text for user and assistant at place {number}"
            raise RecordError("turn_keys", problem, 'write [{"user": ..., "assistant": ...}, ...]', source)
        turns += [{"from": "human", "value": pair["user"]}, {"from": "gpt", "value": pair["assistant"]}]
    if turns and not any(IMAGE in turn["value"] for turn in turns[::2]):
        turns[0]["value"] = f"{IMAGE}\n" * num_images + turns[0]["value"]
    return turns


def _medium(value: object, name: str) -> object:
    """A name, bytes, or {bytes, path} as a name or a `Blob`."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return Blob(name, value) if isinstance(value, bytes) else value


def natural(name: str) -> list:
    """Sorts `2.tar` before `10.tar`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def write_image(data: bytes, folder: Path, source: str) -> str:
    """Write an image as it is, once, under a name made from its content; returns the name, relative to `folder`.

    Args:
        source: `file:row`, for messages.

    Raises:
        RecordError: it is no image.
    """
    try:
        with identify(io.BytesIO(data)) as image:
            suffix = image.format.lower().replace("jpeg", "jpg")
    except (OSError, TypeError, ValueError, Image.DecompressionBombError):
        raise RecordError("image_unreadable", "its image can't be read", "download the file again", source) from None
    digest = hashlib.blake2b(data, digest_size=12).hexdigest()
    name = f"{digest[:2]}/{digest}.{suffix}"
    if not (folder / name).exists():
        write_whole(folder / name, lambda beside: beside.write_bytes(data))
    return name


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value
