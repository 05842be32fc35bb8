"""Opens records with their images, and keeps what was seen.

What was opened stays in the cache, 128 records at a time, with the state of every image file (size, times and inode),
so that a check that was killed goes on where it stopped, and a second one opens only what has changed.
"""

import json
import os
import signal
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL

from ..datasets.images.media import Blob, ImageFolder, MediaSource, display_name, load_reduced
from ..datasets.images.video import load_frames
from ..datasets.left_out import ON_PURPOSE
from ..datasets.records.boxes import compare_size, normalize_boxes
from ..datasets.records.records import Record
from ..datasets.text.tokens import no_garbage_collection
from ..errors import DataError, MediaError, RecordError
from ..files import get_cache_dir, save, text_hash
from ..processes import die_with_parent, num_cores
from .facts import IMAGE, RECORD, hash_text, look_at, note

FORMAT = "3"  # part of the key; to be raised when other facts are kept
CHUNK = 128  # records that a worker takes at a time, and a crash can lose
REDUCED = 240  # pixels that both sides of a reduced image keep; with fewer, fewer scaled copies are found
HARMLESS = tuple(reason for reason in ON_PURPOSE if reason != "too_long")  # left out on purpose: no run stops


@dataclass(frozen=True)
class Trouble:
    """A complaint about an unusable record, or a warning about a usable one.

    Attributes:
        row: index of the record in its file.
        reason, message, remedy: of the error; the message begins with `file:line:`.
    """

    row: int
    reason: str
    message: str
    remedy: str = ""
    is_warning: bool = False

    @classmethod
    def of(cls, row: int, error: DataError, is_warning: bool = False) -> "Trouble":
        """The trouble of an error about a record."""
        return cls(row, error.reason, str(error), error.remedy, is_warning)

    @property
    def is_complaint(self) -> bool:
        """Whether a run with on_bad_sample='raise' stops at the record, or it never fits."""
        return not self.is_warning and self.reason not in HARMLESS


@dataclass(frozen=True)
class Opening:
    """What opens the records of a file, whatever model they will train.

    Attributes:
        index, folder, parse, num_frames: of the dataset.
    """

    index: object
    folder: ImageFolder
    parse: Callable[[object, str], Record]
    num_frames: int

    @classmethod
    def of(cls, dataset, number: int) -> "Opening":
        """What opens file `number` of a dataset (`check.Checked`)."""
        source = dataset.sources[number]
        return cls(source.index, source.folder, dataset.parse, dataset.num_frames)

    def key(self) -> str:
        """Hash of everything that decides what is found, apart from the images."""
        facts = self.folder.key(), self.num_frames, self.parse.__qualname__, self.index.path
        return text_hash(FORMAT, PIL.__version__, self.index.fingerprint(), repr(facts))

    def rows(self, first: int, last: int) -> dict:
        """Open records first:last.

        Returns:
            records, images: tables of `facts`; troubles; stamps: path -> state of every image file, None where an
            image isn't a file, whose state nobody knows.
        """
        records, found, troubles = {}, {}, []
        stamps: dict[str, list | None] = {}
        with no_garbage_collection():
            for row in range(first, last):
                try:
                    records[row] = self.parse(self.index.parse(row), self.index.source(row))
                    found[row] = self._look(row, records[row], stamps)
                    troubles += self._warnings(row, records[row], found[row])
                except DataError as error:
                    records.pop(row, None)
                    about = error if isinstance(error, RecordError) else error.in_record(self.index.source(row))
                    troubles.append(Trouble.of(row, about))
        table = [note(row, record, found[row]) for row, record in records.items()]
        images = [image for row in records for image in found[row]]
        tables = {"records": np.array(table, RECORD), "images": np.array(images, IMAGE)}
        return tables | {"troubles": troubles, "stamps": stamps}

    def _look(self, row: int, record: Record, stamps: dict) -> list[tuple]:
        """The rows of a record's images; `stamps` collects the state of their files."""
        images = []
        for medium in record.media:
            path = self._find(medium.name, stamps)
            own = row if isinstance(medium.name, Blob) else ""  # names of images in rows are alike
            name = hash_text(f"{display_name(path)} {own}")
            if medium.kind == "video":
                frame = load_frames(path, self.num_frames)[0]
                facts = look_at(frame, frame.size, None)
            else:
                look = _look_at_file if isinstance(path, str) else _look_at
                facts = look(path)
            images.append((row, *facts[:2], name, *facts[2:]))
        return images

    def _find(self, name: str | Blob, stamps: dict) -> MediaSource:
        try:
            path = self.folder.resolve(name)
        except MediaError:
            if self.folder.folder is not None:
                path = os.path.join(self.folder.folder, name)  # a link out of the folder may be mended
                stamps[path] = stamp(path)
            raise
        if isinstance(path, str):
            stamps[path] = stamp(path)
        elif type(path) is not Blob:  # it lies in a store
            stamps[display_name(path)] = None
        return path

    def _warnings(self, row: int, record: Record, images: Sequence[tuple]) -> list[Trouble]:
        sizes = [image[1:3] for image in images]
        warnings = [*normalize_boxes(record, sizes.__getitem__).warnings]
        if [medium.kind for medium in record.media] == ["image"]:
            warnings.append(compare_size(record, sizes[0]))
        return [Trouble.of(row, each, is_warning=True) for each in warnings if each is not None]


def _look_at(source: MediaSource) -> tuple:
    return look_at(*load_reduced(source, REDUCED))


_look_at_file = lru_cache(maxsize=50_000)(_look_at)  # a file that many records name is decoded once; 15 MB a process


def stamp(path: MediaSource) -> list | None:
    """The state of a file, or of a folder of frames and all that lies in it; [] where it isn't there."""
    try:
        state = os.stat(path)
        inside = map(stamp, sorted(entry.path for entry in os.scandir(path)) if stat.S_ISDIR(state.st_mode) else ())
        return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, *inside]
    except (OSError, ValueError):  # a name with a null byte
        return []


def _chunk(task: Opening, first: int, last: int, folder: Path) -> dict:
    """What `Opening.rows` finds: kept by an earlier check if no file has changed, else opened now and kept."""
    path = folder / f"{first}.npz"
    if (kept := _read(path)) is not None:
        return kept
    found = task.rows(first, last)
    if None not in found["stamps"].values():
        about = json.dumps([list(map(astuple, found["troubles"])), list(found["stamps"].items())])
        tables = {name: found[name] for name in ("records", "images")}
        save(path, {"about": np.frombuffer(about.encode("utf-8", "surrogatepass"), np.uint8), **tables})
    return found


def _read(path: Path) -> dict | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("records", "images")}
            troubles, stamps = json.loads(arrays["about"].tobytes().decode("utf-8", "surrogatepass"))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # missing, or cut off by a power failure
        return None
    if any(stamp(name) != state for name, state in stamps):
        return None
    return found | {"troubles": [Trouble(*each) for each in troubles]}


def open_all(tasks: list[Opening], num_workers: int | None) -> Iterator[tuple[int, tuple[int, dict]]]:
    """(number of the file, (number of records, what was found)) of each chunk, in order."""
    places = [
        (number, first, min(first + CHUNK, len(task.index)))
        for number, task in enumerate(tasks)
        for first in range(0, len(task.index), CHUNK)
    ]
    work = tasks, [get_cache_dir() / "checked" / task.key() for task in tasks]
    num_workers = num_cores() if num_workers is None else num_workers
    if num_workers:
        pool = ProcessPoolExecutor(min(num_workers, max(1, len(places))), initializer=_start, initargs=(*work, True))
        chunks = pool.map(_work, places)
    else:
        _start(*work)
        pool, chunks = nullcontext(), map(_work, places)
    with pool:
        for (number, first, last), found in zip(places, chunks, strict=True):
            yield number, (last - first, found)


_tasks: list[tuple[Opening, Path]] = []  # of a worker process


def _start(tasks: list[Opening], folders: list[Path], is_worker: bool = False) -> None:
    if is_worker:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the process that waits for the workers
    _tasks[:] = zip(tasks, folders, strict=True)


def _work(place: tuple[int, int, int]) -> dict:
    task, folder = _tasks[place[0]]
    return _chunk(task, *place[1:], folder)
