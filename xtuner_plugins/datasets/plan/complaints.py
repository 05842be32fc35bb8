"""Errors in records as kept on disk, and whether they still hold.

A complaint holds only while the files that it is about are unchanged: a missing image may have been fetched since. Each
line of the file is a JSON list of a `Complaint`'s fields; lines are sorted by row.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence

from ..cache import bytes_hash, stat_stamp, text_hash
from ..errors import DataError, MediaError, RecordError
from ..stores import DENIED, Store

LINK = "-> "  # prefix of a path that was refused because of its target
STORED = "store "  # prefix of the name of an object in the image folder's store
PASSING = ("open_files", DENIED)  # reasons that never hold later


@dataclasses.dataclass(frozen=True)
class Complaint:
    """Why a record can't be used.

    Attributes:
        row: index of the record in its file.
        reason, problem, remedy: of the `DataError`; its place isn't kept, since files may be moved.
        files: path and state of each image or video of the record; None where the complaint never holds later.
    """

    row: int
    reason: str
    problem: str
    remedy: str
    files: tuple[tuple[str, list[int] | str], ...] | None

    @classmethod
    def of(cls, row: int, error: DataError, files: tuple) -> "Complaint":
        """The complaint of an error; `files` is from `stamp_files`."""
        return cls(row, error.reason, error.problem, error.remedy, None if error.reason in PASSING else files)

    def holds(self, store: Store | None = None) -> bool:
        """Whether no file has changed since.

        Args:
            store: of the image folder, where it has one.
        """
        return self.files is not None and all(_state(path, store) == state for path, state in self.files)

    def error(self, source: str) -> RecordError:
        """The complaint as an error about the record at `source` (`file:line`)."""
        return RecordError(self.reason, self.problem, self.remedy, source)


def stamp_files(paths: Sequence[str], store: Store | None = None) -> tuple[tuple[str, list[int] | str], ...]:
    """`Complaint.files` of the media of a record.

    Args:
        paths: of files, folders of frames, `LINK` and a path whose target alone matters, or `STORED` and a name.
        store: of the image folder, where it has one.
    """
    return tuple((path, _state(path, store)) for path in map(_whole, paths))


def _whole(path: str) -> str:
    if path.startswith(STORED):
        return path
    head = LINK if path.startswith(LINK) else ""
    return head + os.path.abspath(path.removeprefix(LINK))


def _state(path: str, store: Store | None = None) -> list | str:
    if path.startswith(STORED):
        return "no store" if store is None else _version(store, path.removeprefix(STORED))
    if path.startswith(LINK):
        return os.path.realpath(path.removeprefix(LINK))
    try:
        return text_hash(*(f"{name} {stat_stamp(os.path.join(path, name))}" for name in sorted(os.listdir(path))))
    except OSError:  # no folder of frames
        return stat_stamp(path)


def _version(store: Store, name: str) -> list | str:
    try:
        return store.version(name) or bytes_hash(store.read(name))
    except MediaError as error:
        return error.reason


def write_complaints(complaints: Iterable[Complaint]) -> str:
    """JSON lines."""
    return "".join(json.dumps(dataclasses.astuple(complaint)) + "\n" for complaint in complaints)


def parse_complaints(text: str) -> list[Complaint]:
    """What `write_complaints` wrote."""
    complaints = []
    for line in text.splitlines():
        *words, files = json.loads(line)
        complaints.append(Complaint(*words, None if files is None else tuple(map(tuple, files))))
    return complaints
