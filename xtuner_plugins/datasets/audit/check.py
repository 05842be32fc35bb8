"""Opens every record and every image of a dataset before training, and reports each error with its place.

Images are decoded and looked at, never cut into tiles; of a usable record a few numbers are kept (`facts`).
"""

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ...data_names import absolute_path, is_url, real_path
from ...processes import die_with_parent, num_cores
from ..bad_samples import file_key
from ..dataset import MultimodalDataset
from ..errors import MediaError, RecordError
from ..images.folders import FolderCount, FolderFiles
from ..images.media import ImageFolder
from ..plan.lengths import FATES, SHRUNK, TRUNCATED
from ..records.records import parse_record
from ..unused import remove_unused
from .chunks import CHUNK, Chunk, Kept, Trouble
from .facts import Facts
from .looking import Checked
from .looks import KnownImages

LEFT_OUT = ("empty_answer",)  # left out under every policy, so no run stops


@dataclass
class FileReport:
    """The findings in one annotation file.

    Attributes:
        troubles: complaints and warnings, in the order of records.
        line: gives the line (or row) of a record.
        key: `bad_samples.file_key`.
        facts: what is kept of each usable record.
    """

    path: str
    num_records: int
    line: Callable[[int], int]
    key: str = ""
    troubles: list[Trouble] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)

    @cached_property
    def troubles_by_row(self) -> dict[int, list[Trouble]]:
        """Complaints and warnings of each record that has some; to be asked when all records are checked."""
        found: dict[int, list[Trouble]] = {}
        for trouble in self.troubles:
            found.setdefault(trouble.row, []).append(trouble)
        return found

    @property
    def complaints(self) -> Counter:
        """Number of unusable records by reason, without those that are left out under every policy."""
        return Counter(each.reason for each in self.troubles if is_complaint(each))

    @property
    def warnings(self) -> Counter:
        """Number of warnings by reason."""
        return Counter(each.reason for each in self.troubles if each.is_warning or each.reason in LEFT_OUT)

    @property
    def rejected(self) -> list[tuple[int, int, str]]:
        """(index of the record, line, reason) of each unusable record and each on the dataset's reject list."""
        return [(each.row, self.line(each.row), each.reason) for each in self.troubles if not each.is_warning]

    @property
    def num_rejected(self) -> int:
        """Records on the dataset's reject list, which aren't opened."""
        return sum(each.reason == "rejected" for each in self.troubles)

    @property
    def num_wrong(self) -> int:
        return sum(map(is_complaint, self.troubles))

    @property
    def num_images(self) -> int:
        return len(self.facts.images)

    @property
    def changes(self) -> dict[str, int]:
        """Number of usable records by what it took to fit `max_length`."""
        counts = np.bincount(self.facts.records["fate"], minlength=len(FATES))
        return {FATES[fate]: int(counts[fate]) for fate in (SHRUNK, TRUNCATED)}

    @property
    def first_cut(self) -> int:
        """Line of the first record whose end is cut off; 0: none."""
        cut = self.facts.records["row"][self.facts.records["fate"] == TRUNCATED]
        return self.line(int(cut[0])) if len(cut) else 0

    def column(self, name: str) -> np.ndarray:
        """One measure of every usable record, int64; width and height only of records with an image."""
        values = self.facts.records[name].astype(np.int64)
        return values[values > 0] if name in ("width", "height") else values


def is_complaint(trouble: Trouble) -> bool:
    """Whether a run with on_bad_sample='raise' stops at the record."""
    return not trouble.is_warning and trouble.reason not in (*LEFT_OUT, "rejected")


def check_dataset(
    dataset: Checked,
    *,
    num_workers: int | None = None,
    complain: Callable[[str], None] = print,
    warn: Callable[[str, str], None] = lambda reason, message: None,
    progress: Callable[[int], None] = lambda done: None,
    resume: Callable[[int], None] = lambda done: None,
    fresh: bool = False,
) -> list[FileReport]:
    """Open every record once, whatever its repeat_times, with its images.

    What an earlier check of the same data has opened isn't opened again, unless a file has changed (see `chunks`).
    Images in stores are opened by every check.

    Args:
        num_workers: processes; default: one per core; 0 works in this process.
        complain: called with each complaint, which begins with `file:line:`.
        warn: called with reason and message of each warning about a usable record.
        progress: called with the number of records done since the last call.
        resume: called first, with the number of records of an earlier check; `progress` counts only the others.
        fresh: open every record, whatever an earlier check has kept.

    Returns:
        A report for each annotation file, in order.

    Raises:
        SettingError: the cache can't be written.
        SourceError: a store doesn't answer.
    """
    reports = [
        FileReport(source.index.path, len(source.index), source.index.line, file_key(source.index))
        for source in dataset.sources
    ]
    for chunk in _run(dataset, num_cores() if num_workers is None else num_workers, resume, progress, fresh):
        report = reports[chunk.number]
        report.facts.add(chunk.facts)
        report.troubles += chunk.troubles
        for trouble in chunk.troubles:
            if is_complaint(trouble):
                complain(trouble.message)
            elif trouble.is_warning:
                warn(trouble.reason, trouble.message)
            elif trouble.reason in LEFT_OUT:
                warn(trouble.reason, f"{trouble.message} (left out)")
    if (cache_dir := getattr(dataset, "cache_dir", None)) is not None:  # benchmarks have none
        remove_unused(cache_dir)
    return reports


def count_folders(
    dataset: Checked,
    progress: Callable[[int], None] = lambda done: None,
    warn: Callable[[str], None] = print,
) -> list[FolderCount]:
    """Compare the names in records with the files of each image folder; no image is opened.

    Files that share a folder are counted together. Records that can't be read name nothing here, and files without an
    image folder have nothing to compare with.

    Args:
        progress: called with the number of records done since the last call.
        warn: called with a line about each zip and store, whose names aren't compared.
    """
    folders: dict[str, tuple[ImageFolder, set[str]]] = {}
    for source in dataset.sources:
        if not _is_named(source.folder):
            progress(len(source.index))
            continue
        _, named = folders.setdefault(real_path(source.folder.folder), (source.folder, set()))
        for row in range(len(source.index)):
            place = source.index.source(row)
            with contextlib.suppress(RecordError):  # the check of the record itself complains
                record = getattr(dataset, "parse", parse_record)(source.index.parse(row), place)
                named.update(medium.name for medium in record.media if isinstance(medium.name, str))
            progress(1)
    counts = []
    for folder, named in folders.values():
        try:
            counts.append(FolderFiles(folder).compare(named))
        except MediaError as error:
            warn(str(error))
    return counts


def _is_named(folder: ImageFolder) -> bool:
    """Whether an entry of `image_folders` names it; without one, images may lie anywhere."""
    return folder.folder is not None and getattr(folder, "is_named", True)


def write_json(
    path: str | os.PathLike,
    reports: Sequence[FileReport],
    folders: Sequence[FolderCount],
    more: Mapping[str, object] | None = None,
) -> None:
    """Write the counts of files and folders, and all missing and superfluous names, for programs to read.

    Args:
        more: further keys of the file (`report.as_json`).
    """
    files = [
        {
            "file": report.path,
            "num_records": report.num_records,
            "num_unusable": report.num_wrong,
            "num_images": report.num_images,
            "unusable": dict(report.complaints),
            "warnings": dict(report.warnings),
        }
        for report in reports
    ]
    content = {"files": files, "folders": [folder.to_json() for folder in folders], **(more or {})}
    Path(path).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def count_samples(dataset: MultimodalDataset, reports: Sequence[FileReport]) -> int:
    """Number of samples of an epoch that train: repeated records count each time, unusable ones never."""
    return sum(
        int(np.isin(pick, [row for row, _, _ in report.rejected], invert=True).sum())
        for pick, report in zip(dataset.picks, reports, strict=True)
    )


def write_reject_list(path: str | os.PathLike, reports: Sequence[FileReport]) -> int:
    """Write the unusable records for `reject_list`, {"file", "row", "line", "reason"} per line; returns the number.

    Of a URL "file" is what messages show, and "key" a hash of it (`bad_samples.file_key`).
    """
    entries = [
        {"file": absolute_path(report.path), "row": row, "line": line, "reason": reason}
        | ({"key": report.key} if is_url(report.path) else {})
        for report in reports
        for row, line, reason in report.rejected
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return len(entries)


def histogram(values: np.ndarray, num_bins: int = 10) -> list[tuple[str, int]]:
    """(range, count) of bins of equal width over whole numbers; empty without values."""
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // num_bins))
    counts = np.bincount((values - low) // width)
    edges = [(low + place * width, min(low + place * width + width - 1, high)) for place in range(len(counts))]
    return [
        (f"{first}" if first == last else f"{first}-{last}", int(count))
        for (first, last), count in zip(edges, counts, strict=True)
    ]


def _run(
    dataset: Checked, num_workers: int, resume: Callable[[int], None], progress: Callable[[int], None], fresh: bool
) -> Iterator[Chunk]:
    kept = [Kept.of(dataset, number) for number in range(len(dataset.sources))]
    places = [
        (number, first, min(first + CHUNK, len(source.index)))
        for number, source in enumerate(dataset.sources)
        for first in range(0, len(source.index), CHUNK)
    ]
    names = [set() if fresh else each.names() for each in kept]
    before = {place for place in places if place[1] in names[place[0]]}
    resume(sum(last - first for _, first, last in before))
    own = _Work(dataset, kept, KnownImages(), fresh)
    if num_workers == 0:
        chunks = map(own.chunk, places)
        pool = contextlib.nullcontext()
    else:
        pool = ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(own,))
        chunks = pool.map(_open_chunk, places)
    with pool:
        for place, chunk in zip(places, chunks, strict=True):
            yield chunk
            progress(0 if place in before else chunk.last - chunk.first)


@dataclass(frozen=True)
class _Work:
    """What a process needs to open chunks."""

    dataset: Checked
    kept: list[Kept]
    known: KnownImages
    fresh: bool

    def chunk(self, place: tuple[int, int, int]) -> Chunk:
        return self.kept[place[0]].chunk(self.dataset, *place, self.known, fresh=self.fresh)


_work: _Work | None = None  # of a worker process


def _start_worker(work: _Work) -> None:
    global _work
    die_with_parent()
    _work = work
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the process that waits for the workers


def _open_chunk(place: tuple[int, int, int]) -> Chunk:
    return _work.chunk(place)
