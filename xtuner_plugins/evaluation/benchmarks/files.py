"""Rows of a file of questions: TSV or JSON lines."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...datasets.errors import DataError, RecordError, SettingError
from ...datasets.records.json_index import parse_json

MAX_CELL = 128 * 2**20  # bytes of a cell or a line: an image of 96 MiB in base64


@dataclass(frozen=True)
class Row:
    """A row with its place (`file:line`), or what is wrong with it."""

    place: str
    values: dict[str, Any] | None
    error: DataError | None = None


def read_tsv(path: Path) -> Iterator[Row]:
    """The rows of a TSV file with a header; cells may be quoted and hold line breaks. Empty cells are left out.

    Raises:
        SettingError: It can't be read as such.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            header, line = next(reader, []), reader.line_num
            if len(set(header)) < len(header):
                raise SettingError("file", f"{path}: two columns have one name", "rename one of them")
            for cells in reader:
                place, line = f"{path}:{line + 1}", reader.line_num
                if cells:
                    yield _tsv_row(place, header, cells)
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingError("file", f"{path} can't be read as TSV ({error})", "save it as UTF-8 with tabs") from None


def _tsv_row(place: str, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        problem = f"{len(cells)} cells, and {len(header)} columns in the header"
        return Row(place, None, RecordError("columns", problem, "quote cells that hold tabs or quotation marks", place))
    return Row(place, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()})


def tsv_columns(path: Path) -> list[str]:
    """The header of a TSV file.

    Raises:
        SettingError: It has none.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader([file.readline(MAX_CELL)], delimiter="\t"), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingError("file", f"{path} can't be read as TSV ({error})", "save it as UTF-8 with tabs") from None
    if len(header) < 2:
        raise SettingError("file", f"{path}: the first line names no columns with tabs between", "add a header")
    return header


def read_json_lines(path: Path) -> Iterator[Row]:
    """The objects of a file with one per line, empty lines passed over."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_CELL):
            number += 1
            if not line.strip():
                continue
            yield _json_row(f"{path}:{number}", line)


def _json_row(place: str, line: bytes) -> Row:
    try:
        return _object_row(place, parse_json(line, place))
    except RecordError as error:
        return Row(place, None, error)


def _object_row(place: str, value: object) -> Row:
    if not isinstance(value, dict):
        return Row(place, None, RecordError("record", "not an object", "write {...}", place))
    return Row(place, value)
