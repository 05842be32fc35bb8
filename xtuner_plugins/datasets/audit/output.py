"""The files of records that preparing and converting write."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from ..cache import write_whole


class _NothingToWrite(Exception):
    """There was no line."""


def write_lines(out: Path, lines: Iterable[str]) -> None:
    """Write lines, all or none; without any, what `out` held before stays."""

    def write(target: Path) -> None:
        with open(target, "w", encoding="utf-8") as file:
            file.writelines(lines)
            if not file.tell():
                raise _NothingToWrite

    with contextlib.suppress(_NothingToWrite):
        write_whole(out, write)
