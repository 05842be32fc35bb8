"""Files of tables, read by group: row groups of Parquet, record batches of Arrow streams (`datasets.save_to_disk`).

Both are memory-mapped, without keeping a descriptor. Reading a group of Parquet decodes the columns that are wanted; a
batch of Arrow is a view.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..cache import quick_hash, stat_stamp
from ..errors import SettingError, out_of_files

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@contextlib.contextmanager
def opening(path: str, kind: str) -> Iterator[None]:
    """Turn any error of pyarrow, and those have many bases, into one of ours.

    Raises:
        SettingError: in place of it.
    """
    try:
        yield
    except SettingError:
        raise
    except OSError as error:
        if limit := out_of_files(error, SettingError, path):
            raise limit from None
        if not isinstance(error, PermissionError):
            raise _not_whole(error, path, kind) from None
        raise SettingError("data_paths", f"can't be read ({error.strerror})", "give read permission", path) from None
    except Exception as error:
        raise _not_whole(error, path, kind) from None


def _not_whole(error: Exception, path: str, kind: str) -> SettingError:
    problem = f"is no whole {kind} file ({' '.join(str(error).split())[:160] or type(error).__name__})"
    return SettingError("data_paths", problem, "fetch it again; it seems to be cut off or damaged", path)


class TableChanged(Exception):
    """A file isn't the one that was opened first."""


class Table:
    """A file of rows in groups.

    Attributes:
        path: of it.
        group_rows: rows of each row group.
        group_bytes: bytes of each row group, uncompressed, all columns together.
        hash: changes with the content.
    """

    def __init__(self, path: str):
        self.path, self.stamp = path, stat_stamp(path)
        self.hash = quick_hash(path)
        self.group_rows: list[int] = []
        self.group_bytes: list[int] = []

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "file"}

    def close(self) -> None:
        """Forget what `file` holds; it is opened again where it is needed. What was read stays as it is."""
        self.__dict__.pop("file", None)

    def check_not_edited(self) -> None:
        """Check that what is mapped wasn't written over; of a file that was replaced the old one stays mapped.

        Raises:
            TableChanged: it was.
        """
        stamp = stat_stamp(self.path)
        if stamp[-1] == self.stamp[-1] and stamp[:2] != self.stamp[:2]:  # the same inode with other content
            raise TableChanged(self.path)

    def _map(self) -> Any:
        """The content, as a pyarrow buffer.

        Raises:
            TableChanged: the file was replaced or edited since it was opened first.
        """
        import pyarrow  # heavy

        with pyarrow.memory_map(self.path) as source:
            content = source.read_buffer()
        stamp = stat_stamp(self.path)
        if stamp != self.stamp:
            # With size and time as they were, perhaps only permissions, links or the inode have changed: then go on.
            if stamp[:2] != self.stamp[:2] or quick_hash(self.path) != self.hash:
                raise TableChanged(self.path)
            self.stamp = stamp
        return content


class ParquetTable(Table):
    """A Parquet file."""

    def __init__(self, path: str):
        with opening(path, "Parquet"):
            super().__init__(path)
            metadata = self.file.metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            self.group_rows = [group.num_rows for group in groups]
            # Not of single columns: pyarrow ends the process where their entries are damaged.
            self.group_bytes = [group.total_byte_size for group in groups]
            if any(rows < 0 for rows in self.group_rows) or sum(self.group_rows) != metadata.num_rows:
                raise ValueError("its row groups contradict its number of rows")

    @cached_property
    def file(self) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(self._map()), pre_buffer=False)

    @property
    def schema(self) -> Any:
        """The columns and their types, as pyarrow has them."""
        return self.file.schema_arrow

    def leaves(self, column: str) -> list[str]:
        """The paths of the stored columns that a column consists of."""
        paths = [self.file.schema.column(number).path for number in range(len(self.file.schema))]
        return [path for path in paths if _is_within(path, [column])]

    def read(self, group: int, columns: Sequence[str]) -> Any:
        """Columns (or `leaves`) of a group, as a pyarrow table."""
        return self.file.read_row_group(group, columns=list(columns), use_threads=False)

    def stream(self, group: int, columns: Sequence[str], num_rows: int) -> Iterator[Any]:
        """The same, as tables of a few rows: little memory, whatever the size of the group."""
        import pyarrow

        for batch in self.file.iter_batches(num_rows, row_groups=[group], columns=list(columns), use_threads=False):
            yield pyarrow.Table.from_batches([batch])


class ArrowTable(Table):
    """An Arrow stream as `datasets` writes it; methods as `ParquetTable`. Its groups are views, of 0 bytes."""

    def __init__(self, path: str):
        import pyarrow.ipc

        with opening(path, "Arrow"):
            super().__init__(path)
            content, schema = self.file
            end = content.size - len(END_OF_STREAM)
            if end < 0 or content[end:] != pyarrow.py_buffer(END_OF_STREAM):
                raise ValueError("its end mark is missing")
            self.offsets = []
            source = pyarrow.BufferReader(content)
            pyarrow.ipc.read_schema(source)
            while (offset := source.tell()) < end:
                message = pyarrow.ipc.read_message(source)
                if message.type != "record batch":
                    raise ValueError(f"holds a {message.type}: columns encoded by dictionaries aren't read")
                self.group_rows.append(pyarrow.ipc.read_record_batch(message, schema).num_rows)
                self.offsets.append(offset)
                self.group_bytes.append(0)

    @cached_property
    def file(self) -> tuple[Any, Any]:
        """(the mapped content, the schema)."""
        import pyarrow.ipc

        content = self._map()
        return content, pyarrow.ipc.read_schema(pyarrow.BufferReader(content))

    @property
    def schema(self) -> Any:
        """The columns and their types, as pyarrow has them."""
        return self.file[1]

    def leaves(self, column: str) -> list[str]:
        """The column itself: nothing is decoded, so nothing is saved by leaving out a part."""
        return [column]

    def read(self, group: int, columns: Sequence[str]) -> Any:
        """Columns of a group, as a pyarrow table."""
        import pyarrow.ipc

        content, schema = self.file
        batch = pyarrow.ipc.read_record_batch(pyarrow.ipc.read_message(content.slice(self.offsets[group])), schema)
        return pyarrow.Table.from_batches([batch]).select(list(columns))


def _is_within(path: str, columns: Sequence[str]) -> bool:
    return any(path == column or path.startswith(f"{column}.") for column in columns)


def find_arrow_files(folder: str) -> list[str] | None:
    """The files of a folder that `datasets.save_to_disk` wrote; None for any other folder.

    Raises:
        SettingError: it holds several splits, or isn't whole.
    """
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        splits = sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
        remedy = f"name one of them: {os.path.join(folder, splits[0]) if splits else folder}"
        raise SettingError("data_paths", f"holds several splits ({', '.join(splits)})", remedy, folder)
    state = Path(folder, "state.json")
    if not state.is_file():
        return None
    try:
        files = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        names = [entry["filename"] for entry in files]
        if not names or any(os.path.basename(name) != name for name in names):
            raise ValueError(f"_data_files is {names!r}"[:200])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError("data_paths", f"can't be read ({error})", "save the dataset again", str(state)) from None
    return [os.path.join(folder, name) for name in names]
