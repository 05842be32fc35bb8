"""Rows of Parquet files or of a dataset saved by `datasets`, with their images, as records read at random.

    image    bytes, a struct {bytes, path}, or a path           one image
    images   a list of these                                    several

A record names an embedded image by its place, `row://ROW/COLUMN/NUMBER`, which `EmbeddedImages` reads; other names and
paths are those of files in the image folder. Texts and images are read apart: measuring lengths decodes no image
column that isn't there, and reading a record no image.

A process keeps decoded groups of at most `MAX_HELD` bytes, of all files together. Of groups above `LARGE_GROUP` it
reads a few rows at a time from their beginning, so that memory stays bounded and an image at the end costs decoding the
group; opening such a file says so.
"""

import bisect
import contextlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..cache import text_hash
from ..errors import DataError, MediaError, RecordError, SettingError, out_of_files
from ..images.archives import ArchiveImages
from ..images.media import Blob, ImageFolder
from .embedded import EmbeddedImages, embedded_name
from .rows import to_record
from .table_files import ArrowTable, ParquetTable, Table, TableChanged, opening

MEDIA = ("image", "images", "video", "videos")
MAX_HELD = 1 << 28  # bytes of decoded groups that a process keeps
MAX_GROUPS = 1024  # groups that it keeps, since views of Arrow files cost a few kB each, too
LARGE_GROUP = 1 << 27  # bytes: larger groups are read a few rows at a time
WINDOW = 1 << 25  # bytes that are kept of a large group
MAX_WINDOWS = 4  # sets of columns of which a window is kept: texts, and each column with images
MAX_ROWS = 64  # read at a time of a large group, since some may be much larger than the average
MAX_OPEN = 64  # files that a process keeps mapped


class TableRecords:
    """The rows of some files as one list; a `RecordSource` (see `opening`).

    Args:
        path: the entry of `data_paths`.
        files: whose rows they are, in order.
        kind: `ParquetTable` or `ArrowTable`.

    Raises:
        SettingError: a file is damaged, has other columns than the first, or columns that can't be used.
    """

    def __init__(self, path: str, files: Sequence[str], kind: type[ParquetTable] | type[ArrowTable]):
        self.path = path
        self.files: list[Table] = []
        self._shapes = []  # of each file, what is read to know how many images its rows have
        for name in files:
            file = kind(name)
            with opening(name, "table"):
                found = _classify(file.schema, name)
                if not self.files:
                    self.texts, self.media = found
                self._shapes.append([leaf for column in self.media for leaf in _shape_leaves(file, column)])
            _check_same((self.texts, self.media), found, name, files[0])
            file.close()
            self.files.append(file)
        rows = [count for file in self.files for count in file.group_rows]
        self._starts = np.cumsum([0, *rows])  # first row of each group, and the end
        self._owners = [
            (number, group) for number, file in enumerate(self.files) for group in range(len(file.group_rows))
        ]
        self._file_starts = np.cumsum([0] + [sum(file.group_rows) for file in self.files])
        if len(self) == 0:
            raise SettingError("data_paths", "holds no rows", "give it records", path)
        if self.media:
            self._warn_of(max(size for file in self.files for size in file.group_bytes))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def source(self, row: int) -> str:
        """`file:row` of a row, counted from 1 in its file."""
        number = int(np.searchsorted(self._file_starts, row, side="right")) - 1
        return f"{self.files[number].path}:{self.line(row)}"

    def line(self, row: int) -> int:
        """The number of a row in its file, counted from 1."""
        return int(row - self._file_starts[np.searchsorted(self._file_starts, row, side="right") - 1]) + 1

    def fingerprint(self, cache_dir: str) -> str:
        """Hash of the files' sizes, times and ends."""
        return text_hash(*(file.hash for file in self.files))

    def reader(self) -> contextlib.nullcontext:
        """For reading in sequence: the groups that are kept make it fast."""
        return contextlib.nullcontext(self)

    def own_images(self, folder: ImageFolder | ArchiveImages) -> EmbeddedImages:
        """The images in the rows, and those that rows name by paths in `folder`."""
        return EmbeddedImages(self, folder)

    def parse(self, row: int) -> object:
        """The raw record of a row.

        Raises:
            RecordError: it can't be read.
        """
        source = self.source(row)
        with _reading(source):
            part = self._row(row)
            values = {name: part.column(name)[0].as_py() for name in self.texts}
            num_images = 0
            for number, name in enumerate(self.media):
                scalar = part.column(name)[0]
                if not scalar.is_valid:
                    continue
                if _is_list(scalar.type):
                    values[name] = [embedded_name(row, place, number) for place in range(len(scalar))] or None
                else:
                    values[name] = embedded_name(row, 0, number)
                num_images += (name in ("image", "images")) * (len(scalar) if _is_list(scalar.type) else 1)
            for name in ("image", "images"):
                if name in self.texts and values[name]:
                    num_images += 1 if isinstance(values[name], str) else len(values[name])
            return to_record(values, num_images, source)

    def embedded(self, row: int, column: int, number: int) -> Blob | str:
        """As `embedded.HoldsImages`."""
        shown = f"image {number + 1}"
        with _reading(shown, MediaError):
            if row >= len(self):
                raise IndexError(row)
            name = self.media[column]
            value = self._row(row, [name]).column(name)[0]
            value = (value.values[number] if _is_list(value.type) else value).as_py()
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is not None:
            return Blob(shown, data)
        if path:
            return path
        raise MediaError("image_missing", "neither bytes nor a path", "give the image or remove the row", shown)

    def _row(self, row: int, columns: list[str] | None = None) -> Any:
        """Columns of a row, as a pyarrow table of one row; by default all but the bytes of images."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        number, own_group = self._owners[group]
        file = self.files[number]
        columns = columns or [*self.texts, *self._shapes[number]]
        part = _get_held().read(file, own_group, row - int(self._starts[group]), columns)
        if isinstance(file, ArrowTable):
            part.validate(full=True)  # views of a file that nobody has looked at
        return part

    def _warn_of(self, large: int) -> None:
        if large > LARGE_GROUP and os.environ.get("LOCAL_RANK", "0") == "0":
            print(
                f"{self.path}: row groups hold up to {large / 1e6:,.0f} MB; an image read at random costs decoding its "
                "group up to it. Write groups of 100 rows (row_group_size=100), or save the data with datasets' "
                "save_to_disk and name that folder",
                file=sys.stderr,
                flush=True,
            )


class _Window:
    """The rows of a large group that were read last, at most `WINDOW` bytes of them or one batch.

    pyarrow decodes a dictionary whole and keeps it while a group is read. One above `LARGE_GROUP` is let go after each
    reading, which then fills the window ahead, since going on means decoding the dictionary again.
    """

    def __init__(self, file: ParquetTable, group: int, columns: list[str], num_rows: int):
        self.place, self.num_rows = (file, group), num_rows
        self.rest: Iterator | None = file.stream(group, columns, num_rows)
        self.batches, self.ends = [], []  # what was read, and the first row after each
        self.first = self.num_bytes = self.largest = 0

    def reaches(self, row: int) -> bool:
        """Whether a row is here or can still be read."""
        return row >= self.first and (self.rest is not None or row < self.ends[-1])

    def read(self, row: int) -> Any:
        """A row within reach, as a table."""
        if not self.ends or row >= self.ends[-1]:
            self._read_up_to(row)
        number = bisect.bisect_right(self.ends, row)
        batch = self.batches[number]
        return batch.slice(row - self.ends[number] + batch.num_rows, 1)

    def _read_up_to(self, row: int) -> None:
        import pyarrow

        before = pyarrow.total_allocated_bytes() - self.num_bytes
        while not self.ends or row >= self.ends[-1]:
            self._add(next(self.rest))
        if pyarrow.total_allocated_bytes() - before - self.num_bytes > LARGE_GROUP:
            while len(self.batches) > 1:
                self._drop_first()
            while self.num_bytes + self.largest <= WINDOW and (batch := next(self.rest, None)) is not None:
                self._add(batch)
            self.rest = None
            pyarrow.default_memory_pool().release_unused()

    def _add(self, batch: Any) -> None:
        self.batches.append(batch)
        self.ends.append((self.ends or [0])[-1] + batch.num_rows)
        self.num_bytes += batch.nbytes
        self.largest = max(self.largest, batch.nbytes)
        while len(self.batches) > 1 and self.num_bytes > WINDOW:
            self._drop_first()

    def _drop_first(self) -> None:
        self.num_bytes -= self.batches.pop(0).nbytes
        self.first = self.ends.pop(0)


class _Held:
    """What a process keeps of tables: mapped files, decoded groups, and windows of large groups."""

    def __init__(self):
        self.pid, self.lock = os.getpid(), threading.Lock()
        self.groups: OrderedDict[tuple, tuple[Any, int]] = OrderedDict()  # what was decoded, and its bytes
        self.num_bytes = 0  # of the groups
        self.windows: OrderedDict[tuple, _Window] = OrderedDict()  # columns -> where they were read last
        self.opened: OrderedDict[Table, None] = OrderedDict()
        self.num_rows: dict[tuple, int] = {}  # (file, columns) -> rows read at a time of its large groups

    def read(self, file: Table, group: int, row: int, columns: list[str]) -> Any:
        """Columns of a row of a group, as a table."""
        key = (file, group, *columns)
        with self.lock:
            if key in self.groups:
                self.groups.move_to_end(key)
                return self.groups[key][0].slice(row, 1)
            self._open(file)
            file.check_not_edited()
            if file.group_bytes[group] > LARGE_GROUP:
                return self._read_window(file, group, row, columns)
            table = file.read(group, columns)
            size = 0 if isinstance(file, ArrowTable) else table.nbytes
            if size > LARGE_GROUP:  # dictionaries in the file hid it
                file.group_bytes[group] = size
            else:
                self._keep(key, table, size)
            return table.slice(row, 1)

    def _read_window(self, file: ParquetTable, group: int, row: int, columns: list[str]) -> Any:
        key, rows_key = tuple(columns), (file, *columns)
        window = self.windows.pop(key, None)
        if window is None or window.place != (file, group) or not window.reaches(row):
            average = file.group_bytes[group] / file.group_rows[group]
            num_rows = min(MAX_ROWS, max(1, int(WINDOW / 4 / average)), self.num_rows.get(rows_key, MAX_ROWS))
            window = _Window(file, group, columns, num_rows)
        part = window.read(row)
        if window.largest > WINDOW and window.num_rows > 1:  # some rows are much larger than the average
            self.num_rows[rows_key] = max(1, int(window.num_rows * WINDOW / window.largest))
        else:
            self.windows[key] = window
            while len(self.windows) > MAX_WINDOWS:
                self.windows.popitem(last=False)
        return part

    def _keep(self, key: tuple, value: Any, size: int) -> None:
        self.groups[key] = value, size
        self.num_bytes += size
        while len(self.groups) > 1 and (self.num_bytes > MAX_HELD or len(self.groups) > MAX_GROUPS):
            _, (_, size) = self.groups.popitem(last=False)
            self.num_bytes -= size

    def _open(self, file: Table) -> None:
        self.opened[file] = None
        self.opened.move_to_end(file)
        while len(self.opened) > MAX_OPEN:
            self.opened.popitem(last=False)[0].close()


_held: _Held | None = None


def _get_held() -> _Held:
    """What this process keeps; a forked one begins with nothing, since locks may have been held."""
    global _held
    if _held is None or _held.pid != os.getpid():
        _held = _Held()
    return _held


@contextlib.contextmanager
def _reading(place: str, kind: Callable[..., DataError] = RecordError) -> Iterator[None]:
    """Turn any error of pyarrow, and those have many bases, into one of ours."""
    try:
        yield
    except DataError:
        raise
    except TableChanged:
        remedy = "start again, the file is then opened anew"
        raise kind("file_changed", "the file has changed since it was opened", remedy, place) from None
    except FileNotFoundError:
        raise kind("file_gone", "can't be read any more", "keep files in place while they are used", place) from None
    except Exception as error:
        if limit := out_of_files(error, kind, place):
            raise limit from None
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise kind("table_unreadable", f"can't be read ({text})", "fetch the file again", place) from None


def _classify(schema: Any, path: str) -> tuple[list[str], list[str]]:
    """(columns that are read as they are, columns with embedded images).

    Raises:
        SettingError: columns of the same name, images of another form, or bytes under other names alone.
    """
    names = schema.names
    if len(set(names)) != len(names):
        raise SettingError("data_paths", "has columns of the same name", "rename them", path)
    large = [name for name in names if _holds_bytes(schema.field(name).type)]
    media = [name for name in names if name in MEDIA and (name in large or _is_media(schema.field(name).type))]
    for name in media:
        if not _is_media(schema.field(name).type):
            problem = f"the column {name!r} is {str(schema.field(name).type)[:120]}"
            raise SettingError("data_paths", problem, "make it bytes, {bytes, path}, or a list of them", path)
    if large and not any(name in MEDIA for name in names):
        problem = f"no column 'image' or 'images', but bytes in {', '.join(large)}"
        remedy = "rename the column with the images to 'image' or 'images'"
        raise SettingError("data_paths", problem, remedy, path)
    return [name for name in names if name not in (*large, *media)], media


def _children(kind: Any) -> list:
    import pyarrow
    import pyarrow.types as types

    if isinstance(kind, pyarrow.BaseExtensionType):
        return [kind.storage_type]
    if types.is_dictionary(kind) or _is_list(kind):
        return [kind.value_type]
    if types.is_map(kind):
        return [kind.key_type, kind.item_type]
    return [kind.field(number).type for number in range(kind.num_fields)] if types.is_struct(kind) else []


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    return _is_binary(kind) or types.is_fixed_size_binary(kind) or any(map(_holds_bytes, _children(kind)))


def _is_media(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if _is_list(kind) else kind
    if types.is_struct(kind):
        fields = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        return "bytes" in fields and (_is_binary(fields["bytes"]) or types.is_null(fields["bytes"]))
    return _is_binary(kind)


def _shape_leaves(file: ParquetTable | ArrowTable, name: str) -> list[str]:
    """What must be read of a column to know which rows have images, and how many: their paths rather than bytes."""
    leaves = file.leaves(name)
    return [leaf for leaf in leaves if not leaf.endswith(".bytes")] or leaves


def _check_same(expected: tuple[list[str], ...], found: tuple[list[str], ...], path: str, first: str) -> None:
    for mine, theirs, what in zip(found, expected, ("columns", "columns with images in them"), strict=True):
        if set(mine) != set(theirs):
            problem = f"has the {what} {', '.join(mine) or 'none'}, but {first} {', '.join(theirs) or 'none'}"
            raise SettingError("data_paths", problem, "name files of one form, or one entry for each", path)
