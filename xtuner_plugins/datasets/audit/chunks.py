"""Records opened some at a time, and kept in the cache, so that a check that was killed goes on where it stopped.

A chunk is kept with the state of every image and video file that it opened (size, both times and inode; see
`cache.stat_stamp`), from before it was opened. It is opened again where one of them has changed. Its folder is named
after everything else that decides the outcome: content of the annotation file, archives and tables, and the settings.
"""

import contextlib
import importlib.util
import json
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import PIL

from ..cache import CLOCK_STEP, save, text_hash
from ..dataset import MultimodalDataset
from ..errors import DataError, MediaError
from ..plan.complaints import LINK, PASSING, Complaint, stamp_files
from ..records.boxes import compare_size, normalize_boxes
from ..records.records import Record
from ..text.tokens import no_garbage_collection
from ..unused import mark_used
from .facts import TABLES, gather
from .looking import AskedFiles, Checked, PlainFiles, Seen, UncutMedia, see
from .looks import KnownImages, Stamp

FORMAT = "2"  # part of the key; to be raised when other facts are kept
CHUNK = 128  # records that a worker takes at a time, and a crash can lose


@dataclass(frozen=True)
class Trouble:
    """A complaint about an unusable record, or a warning about a usable one."""

    row: int
    reason: str
    message: str  # begins with `file:line:`, except for records on the reject list
    remedy: str = ""
    is_warning: bool = False


@dataclass(frozen=True)
class Chunk:
    """Records `first` to `last` of file `number`, opened.

    Attributes:
        facts: rows of the tables of `facts`.
        troubles: complaints and warnings, in the order of records.
        was_kept: whether an earlier check had opened them.
    """

    number: int
    first: int
    last: int
    facts: dict[str, np.ndarray]
    troubles: list[Trouble]
    was_kept: bool = False


def open_chunk(dataset: Checked, number: int, first: int, last: int, known: KnownImages | None = None) -> Chunk:
    """Open records with their images, as training will.

    Args:
        known: images that have been decoded before.

    Raises:
        RecordError: a store doesn't answer.
    """
    return _open(dataset, number, first, last, known)[0]


def _open(
    dataset: Checked, number: int, first: int, last: int, known: KnownImages | None
) -> tuple[Chunk, dict[str, Stamp]]:
    """A chunk, and the files that it opened by their paths."""
    known = KnownImages() if known is None else known
    troubles: list[Trouble] = []
    stamps: dict[str, Stamp] = {}

    def usable() -> Iterator[tuple[int, Seen]]:
        for row in range(first, last):
            if row in dataset.rejected[number]:
                troubles.append(Trouble(row, "rejected", "on the reject list"))
                continue
            media = UncutMedia(dataset.num_frames, dataset.max_pixels, known)
            try:
                seen = see(dataset, number, row, media, records.get(row))
            except DataError:
                files = _files_of(dataset, number, row)
                stamps.update((path, (path, state)) for path, state in files)
                try:
                    media = UncutMedia(dataset.num_frames, dataset.max_pixels, known)
                    seen = see(dataset, number, row, media)  # again, now that the files are stamped
                except DataError as error:
                    troubles.append(Trouble(row, error.reason, str(error), error.remedy))
                    continue
            stamps.update((stamp[0], stamp) for stamp in media.stamps)
            troubles.extend(_warnings(row, seen))
            yield row, seen

    with no_garbage_collection():
        records = _decode_ahead(dataset, number, range(first, last), known)
        return Chunk(number, first, last, gather(usable()), troubles), stamps


def _decode_ahead(dataset: Checked, number: int, rows: Sequence[int], known: KnownImages) -> dict[int, Record]:
    """Decode the image files of some records one after another, which takes a fifth less time than between texts.

    What can't be read or decoded is passed over: opening its record says why.

    Returns:
        The records by their rows.
    """
    records = {}
    folder = getattr(dataset.sources[number], "folder", None)  # questions have none
    for row in rows if folder is not None else ():
        with contextlib.suppress(DataError):
            records[row] = dataset.record(number, row)
            for medium in records[row].media:
                path = folder.resolve(medium.name)
                if medium.kind == "image" and isinstance(path, str):
                    known.open(path, dataset.max_pixels)
    return records


def _files_of(dataset: Checked, number: int, row: int) -> Sequence[Stamp]:
    """The media files of a record that can't be used, as `stamp_files` gives them."""
    paths = []
    try:
        folder = dataset.sources[number].folder
        for medium in dataset.record(number, row).media:
            try:
                path = folder.resolve(medium.name)
            except MediaError as error:
                if error.reason == "image_outside" and folder.folder is not None:
                    paths.append(f"{LINK}{folder.folder}/{medium.name}")
                continue
            if isinstance(path, str):
                paths.append(path)
    except (DataError, AttributeError):  # a record without media that can be named; questions have no folder
        return ()
    return stamp_files(paths)


def _warnings(row: int, seen: Seen) -> list[Trouble]:
    size = next((each.size for each in seen.images if each.kind == "image"), (0, 0))
    found = [*normalize_boxes(seen.record).warnings, compare_size(seen.record, size)]
    return [Trouble(row, each.reason, str(each), each.remedy, is_warning=True) for each in found if each is not None]


class Kept:
    """The chunks of one file in the cache.

    Args:
        folder: of the file's chunks; None keeps nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        if folder is not None:
            mark_used(folder)

    @classmethod
    def of(cls, dataset: Checked, number: int) -> "Kept":
        """The chunks of file `number`; benchmarks keep none, nor do images in stores, which have no stamps here."""
        if isinstance(dataset, AskedFiles) or hasattr(dataset.sources[number].folder, "store"):
            return cls(None)
        return cls(Path(dataset.cache_dir) / "checked" / _key(dataset, number))

    def names(self) -> set[int]:
        """First records of the chunks that are kept."""
        found = self.folder.glob("*.npz") if self.folder is not None else ()
        return {int(path.stem) for path in found if path.stem.isdecimal()}

    def chunk(
        self, dataset: Checked, number: int, first: int, last: int, known: KnownImages | None, *, fresh: bool = False
    ) -> Chunk:
        """A chunk: the kept one if its files are unchanged, else opened now and kept.

        Args:
            known: as `open_chunk`.
            fresh: open it in any case.

        Raises:
            SettingError: the cache can't be written.
        """
        if self.folder is None:
            return open_chunk(dataset, number, first, last, known)
        path = self.folder / f"{first}.npz"
        if not fresh and (found := _read(path)) is not None:
            return replace(found, number=number, first=first, last=last, was_kept=True)
        started = time.time_ns()
        chunk, stamps = _open(dataset, number, first, last, known)
        _write(path, chunk, stamps, started)
        return chunk


def _key(dataset: PlainFiles | MultimodalDataset, number: int) -> str:
    source = dataset.sources[number]
    settings = [FORMAT, PIL.__version__, str(importlib.util.find_spec("pillow_heif") is not None), repr(TABLES)]
    settings += [source.index.path, source.index.fingerprint(), dataset.parse.__qualname__]
    settings += [repr(source.folder.key()), repr(source.tiling), repr((dataset.num_frames, dataset.max_pixels))]
    settings += [repr(sorted(dataset.rejected[number]))]
    if isinstance(dataset, MultimodalDataset):
        settings += [repr(source.template), dataset.tokenizer.fingerprint(), repr(dataset.budget)]
    return text_hash(*settings)


def _write(path: Path, chunk: Chunk, stamps: dict[str, Stamp], started: int) -> None:
    """Keep a chunk, unless it may be outdated already: a file may change again within a step of the clock."""
    newest = max((state[2] for _, state in stamps.values() if not isinstance(state, str)), default=0)
    if newest > started - CLOCK_STEP or any(each.reason in PASSING for each in chunk.troubles):
        path.unlink(missing_ok=True)
        return
    about = json.dumps({"troubles": list(map(astuple, chunk.troubles)), "files": list(stamps.values())})
    save(path, {"about": np.frombuffer(about.encode("utf-8", "surrogatepass"), np.uint8), **chunk.facts})


def _read(path: Path) -> Chunk | None:
    """A kept chunk whose files are unchanged; None also for a file that a power failure has cut off."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = {name: arrays[name] for name in TABLES}
            about = json.loads(arrays["about"].tobytes().decode("utf-8", "surrogatepass"))
            troubles = [Trouble(*each) for each in about["troubles"]]
            files = tuple(map(tuple, about["files"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    if not Complaint(0, "", "", "", files).holds():
        return None
    return Chunk(0, 0, 0, facts, troubles)
