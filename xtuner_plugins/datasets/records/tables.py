"""Rows of tables and samples of tar shards as records, read at random.

    Parquet        in place where its largest row group has at most `IN_PLACE` bytes, otherwise one copy
    save_to_disk   the Arrow files that `datasets` wrote, in place
    WebDataset     one copy; members whose names agree up to the first dot of the last part are one sample:
                   000017.jpg  000017.json    the record, about the sample's own images (or 000017.0.jpg ...)
                   000018.jpg  000018.txt     a caption: the question is the image alone

A copy is an Arrow file in the cache directory, memory-mapped by every process. A key that a record lacks is null in a
table, and is left out. Turns may be JSON text.
"""

import bisect
import hashlib
import itertools
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import DataError, MediaError, RecordError, SettingError, SourceError, one_line
from ...files import build_once, get_cache_dir, text_hash, write_whole
from ..images.media import IMAGE_SUFFIXES, Blob, natural, open_image
from .foreign import LISTS, renamed
from .json_index import check_unchanged, parse_json, stamp_of

IN_PLACE = 32 << 20  # bytes of a row group: reading a row decodes its group
GROUPS = 8  # that a process keeps decoded
ROWS = 100  # written at a time
TURNS = (*LISTS, "chosen")  # keys that tell a record from other JSON in a tar


class TableRecords:
    """The rows of one entry of `data_paths`; a `RecordSource` (see `opening`).

    Args:
        path: the entry, as messages call it.
        kind: 'arrow' (a folder of `save_to_disk`), 'parquet' or 'tar'.
        files: whose rows they are, in order.
        columns: names here -> names in the table, see `foreign.renamed`.

    Raises:
        SettingError: a file is damaged, or there is no room for a copy.
    """

    def __init__(self, path: str, kind: str, files: Sequence[str], columns: Mapping[str, str] | None = None):
        self.path, self.kind, self.columns = path, kind, dict(columns or {})
        try:
            self.stamps = {file: stamp_of(file) for file in files}
            self.rows = self._open(list(files))
        except (DataError, SourceError):
            raise
        except Exception as error:  # those of pyarrow and datasets have many bases
            problem = f"can't be read as {kind} ({one_line(error)})"
            raise SettingError("data_paths", problem, "fetch it again, or write it again", path) from None
        if not len(self):
            raise SettingError("data_paths", "holds no rows", "give it records", path)

    def _open(self, files: list[str]) -> Any:
        import datasets

        if self.kind == "arrow":
            rows = datasets.load_from_disk(self.path)
            if isinstance(rows, datasets.DatasetDict):
                remedy = f"name one of them: {self.path}/{next(iter(rows))}"
                raise SettingError("data_paths", f"holds several splits ({', '.join(rows)})", remedy, self.path)
            return rows.with_format("arrow")
        if self.kind == "parquet":
            rows = ParquetRows(files)
            if rows.largest <= IN_PLACE:
                return rows
            batches, needed = rows.batches(), rows.num_bytes
        else:
            batches, needed = _sample_batches(files), sum(map(os.path.getsize, files))
        copy = get_cache_dir() / "tables" / f"{self.fingerprint()}.arrow"
        build_once(copy, lambda beside: _write(batches, beside, self.path, needed))
        return datasets.Dataset.from_file(str(copy)).with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def source(self, row: int) -> str:
        """`entry:row`, counted from 1 over all files of the entry."""
        return f"{self.path}:{row + 1}"

    def fingerprint(self) -> str:
        """Hash of the files' paths, sizes and times."""
        return text_hash(json.dumps([sorted(self.stamps.items()), self.columns]))

    def parse(self, row: int) -> object:
        """The raw record of a row; its images may be bytes, or structs of bytes and path.

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
            problem = f"can't be read ({one_line(error)})"
            raise RecordError("table_unreadable", problem, "fetch the file again", source) from None
        record = renamed(_of_sample(record, source) if self.kind == "tar" else record, self.columns)
        for key in LISTS if isinstance(record, dict) else ():
            if isinstance(record.get(key), str):
                record[key] = parse_json(record[key].encode("utf-8", "surrogatepass"), source)
        return record


class ParquetRows:
    """Rows of Parquet files, read in place by groups; `largest`, `num_bytes`: of the largest group and all, decoded."""

    def __init__(self, files: Sequence[str]):
        import pyarrow.parquet as parquet

        self.files, self.groups, self.starts, sizes = files, [], [0], [0]
        for file in files:
            metadata = parquet.read_metadata(file)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                self.groups.append((file, number, stamp_of(file)))
                self.starts.append(self.starts[-1] + group.num_rows)
                sizes.append(group.total_byte_size)
        self.largest, self.num_bytes = max(sizes), sum(sizes)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, row: int) -> Any:
        number = bisect.bisect_right(self.starts, row) - 1
        return _read_group(*self.groups[number]).slice(row - self.starts[number], 1)

    def batches(self) -> Iterator[Any]:
        """All rows as record batches of one schema."""
        import pyarrow
        import pyarrow.dataset
        import pyarrow.parquet

        schemas = [pyarrow.parquet.read_schema(file).remove_metadata() for file in self.files]
        schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
        files = pyarrow.dataset.dataset(self.files, schema, format="parquet")
        yield from files.to_batches(batch_size=ROWS, batch_readahead=0, fragment_readahead=0, use_threads=False)


@lru_cache(GROUPS)
def _read_group(file: str, number: int, stamp: tuple[int, ...]) -> Any:
    import pyarrow.parquet as parquet

    check_unchanged(file, stamp, file)
    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(number, use_threads=False)  # threads don't survive a fork


def _write(batches: Iterator[Any], target: Path, path: str, needed: int) -> None:
    """Copy the rows of `path` into an Arrow file, with a line that says so, where the disk has the bytes for it."""
    import pyarrow

    free = shutil.disk_usage(target.parent).free
    sizes = f"{needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free"
    if needed > free:
        remedy = "name a cache directory with more room (XTUNER_PLUGINS_CACHE), or rows in groups of 100"
        raise SettingError("cache", f"no room for a copy of {path} ({sizes})", remedy, str(target.parent))
    print(f"copying {path} into {target.parent} ({sizes})", file=sys.stderr, flush=True)
    first = next(batches, None)
    if first is None:
        raise ValueError("no samples")
    with pyarrow.OSFile(str(target), "wb") as file, pyarrow.ipc.new_stream(file, first.schema) as stream:
        for batch in itertools.chain([first], batches):
            stream.write_batch(batch)


def _sample_batches(files: Sequence[str]) -> Iterator[Any]:
    """The samples of tar shards as record batches of {json, txt, names, images}."""
    import pyarrow

    text, names, images = pyarrow.binary(), pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.large_binary())
    schema = pyarrow.schema({"json": text, "txt": text, "names": names, "images": images})
    samples = itertools.chain.from_iterable(map(_samples, files))
    while rows := list(itertools.islice(samples, ROWS)):
        yield pyarrow.RecordBatch.from_pylist(rows, schema)


def _samples(path: str) -> Iterator[dict]:
    with tarfile.open(path, "r:") as archive:
        members = (info for info in archive if info.isfile())
        for key, group in itertools.groupby(members, lambda info: _split(info.name)[:2]):
            if key[1][:2] not in ("", "__"):
                found = {_split(info.name)[2].lower(): archive.extractfile(info).read() for info in group}
                names = sorted((name for name in found if f".{name}".endswith(IMAGE_SUFFIXES)), key=natural)
                images = {"names": [f"{key[1]}.{name}" for name in names], "images": [found[name] for name in names]}
                yield {"json": found.get("json"), "txt": found.get("txt"), **images}
        archive.fileobj.seek(archive.offset)
        if any(archive.fileobj.read(tarfile.BLOCKSIZE) or b"\1"):  # tarfile ends in silence at a damaged header
            raise tarfile.ReadError(f"{path} is damaged or cut off at byte {archive.offset:,}")


def _split(name: str) -> tuple[str, str, str]:
    """Folder, key and what follows the key's dot, of a member's name."""
    folder, _, last = name.removeprefix("./").rpartition("/")
    key, _, rest = last.partition(".")
    return folder, key, rest


def _of_sample(sample: dict, source: str) -> object:
    """The record in a sample's .json, about its own images, or its caption.

    Names in the record's list are those of members, whole or behind the key (`1.jpg`); other names lead to the image
    folder. With one image on both sides the name doesn't matter.
    """
    images = dict(zip(sample.get("names", ()), sample.get("images", ()), strict=True))
    record = parse_json(sample["json"], source) if "json" in sample else None
    has_turns = isinstance(record, dict) and any(key in record for key in TURNS)
    if record is None or ("txt" in sample and not has_turns):
        return _of_caption(sample, list(images.values()), source)
    if not isinstance(record, dict) or not images:
        return record
    key = "images" if "images" in record else "image"
    named = record.get(key) or list(images)
    named = named if isinstance(named, list) else [named]
    if len(named) == len(images) == 1:
        return record | {key: list(images.values())}
    own = {name.lower(): data for name, data in images.items()}
    own |= {name.partition(".")[2]: data for name, data in own.items()}
    lasts = [str(name).replace("\\", "/").rpartition("/")[2].lower() for name in named]
    return record | {key: [own.get(last, name) for last, name in zip(lasts, named, strict=True)]}


def _of_caption(sample: dict, images: list[bytes], source: str) -> dict:
    try:
        text = sample["txt"].decode("utf-8").strip()
    except KeyError:
        raise RecordError("sample", "neither .json nor .txt", "write the record beside the image", source) from None
    except UnicodeDecodeError:
        raise RecordError("encoding", "its caption isn't UTF-8", "save it as UTF-8", source) from None
    turns = [{"from": "human", "value": "\n".join(["<image>"] * len(images))}, {"from": "gpt", "value": text}]
    return {"image": images, "conversations": turns}


def write_image(data: bytes, folder: Path, source: str) -> str:
    """Write an image once, under a name made from its content, which is returned; `RecordError` if it is none."""
    try:
        with open_image(Blob("its image", data)) as image:
            suffix = image.format.lower().replace("jpeg", "jpg")
    except MediaError:
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
