"""Opens every record and every image of a dataset before training, and reports each error with its place."""

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ...hub.constants import IGNORE_INDEX
from ...processes import die_with_parent, num_cores
from ..cache import get_cache_dir
from ..dataset import MultimodalDataset
from ..errors import DataError, MediaError, RecordError
from ..images.archives import open_images
from ..images.folders import FolderCount, FolderFiles
from ..images.media import MAX_PIXELS, ImageFolder, load_image
from ..images.video import load_frames
from ..mixture import raise_together
from ..records.boxes import compare_size, normalize_boxes
from ..records.opening import folder_of, open_records
from ..records.records import Record, parse_record

NUM_FRAMES = 8  # per video, the dataset's default
CHUNK = 64  # records that a worker takes at a time
COLUMNS = ("tokens", "supervised", "tiles", "turns", "width", "height")

_dataset = None  # the copy of a worker process


@dataclass
class FileReport:
    """The findings in one annotation file.

    Attributes:
        complaints: number of unusable records by reason.
        rejected: (index of the record, line, reason) of each unusable record and each on the dataset's reject list.
        num_rejected: records on that list, which aren't opened.
        changes: number of usable records by what it took to fit `max_length` ('shrink_tiles', 'truncate_text').
        first_cut: line of the first record whose end is cut off; 0: none.
        measures: `COLUMNS` of each usable record; width and height are those of its first image.
        warnings: number of warnings about usable records, by reason.
    """

    path: str
    num_records: int
    num_images: int = 0
    complaints: Counter = field(default_factory=Counter)
    rejected: list[tuple[int, int, str]] = field(default_factory=list)
    measures: list[tuple[int, ...]] = field(default_factory=list)
    num_rejected: int = 0
    changes: Counter = field(default_factory=Counter)
    first_cut: int = 0
    warnings: Counter = field(default_factory=Counter)

    @property
    def num_wrong(self) -> int:
        return sum(self.complaints.values())

    def column(self, name: str) -> np.ndarray:
        """One measure of every usable record, int64; width and height only of records with an image."""
        values = np.array([row[COLUMNS.index(name)] for row in self.measures], np.int64)
        return values[values > 0] if name in ("width", "height") else values


@dataclass(frozen=True)
class Finding:
    """One opened record: its measures and the (reason, message) of each warning; or what is wrong with it."""

    number: int  # of the file
    row: int  # of the record in it
    num_images: int = 0
    measures: tuple[int, ...] = ()
    fate: str = "fits"
    reason: str = ""
    message: str = ""
    warnings: tuple[tuple[str, str], ...] = ()


class PlainFiles:
    """Annotation files without a model: records and images are opened, tokens and tiles are not counted.

    Args:
        data_paths: the files.
        image_folders: one per file.
        max_pixels: of an image.
        parse: of the kind of records, as `MultimodalDataset.parse`.

    Raises:
        SettingError, RecordError: files or folders can't be used; one error names all of them.
    """

    def __init__(
        self,
        data_paths: Sequence[str],
        image_folders: Sequence[str | None],
        max_pixels: int = MAX_PIXELS,
        parse: Callable[[object, str], Record] = parse_record,
    ):
        self.parse = parse
        self.sources, errors = [], []
        cache_dir = get_cache_dir()
        for path, folder in zip(data_paths, image_folders, strict=True):
            try:
                index = open_records(path, cache_dir)
                images = index.own_images(open_images(folder, folder_of(path), cache_dir))
                self.sources.append(SimpleNamespace(index=index, folder=images))
            except DataError as error:
                errors.append(error)
        raise_together(errors)
        self.max_pixels = max_pixels

    def open(self, number: int, row: int) -> tuple[Record, tuple[int, ...]]:
        """A record and its `COLUMNS`."""
        source = self.sources[number]
        record = self.parse(source.index.parse(row), source.index.source(row))
        try:
            paths = [source.folder.resolve(medium.name) for medium in record.media]
            images = [
                load_frames(path, NUM_FRAMES, self.max_pixels)[0]
                if medium.kind == "video"
                else load_image(path, self.max_pixels)
                for path, medium in zip(paths, record.media, strict=True)
            ]
            normalize_boxes(record, lambda place: images[place].size)
        except MediaError as error:
            raise error.in_record(record.source) from None
        return record, (0, 0, 0, len(record.turns), *(images[0].size if images else (0, 0)))


def open_record(dataset: "MultimodalDataset | PlainFiles", number: int, row: int) -> Finding:
    """Open one record with its images, as training will."""
    try:
        if isinstance(dataset, PlainFiles):
            record, measures = dataset.open(number, row)
            fate = "fits"
        elif row in dataset.rejected[number]:
            return Finding(number, row, reason="rejected")
        else:
            sample = dataset.load(number, row)
            record, labels, fate = dataset.record(number, row), sample["labels"], sample["fate"]
            measures = (len(labels), int((labels != IGNORE_INDEX).sum()), sample["num_tiles"], len(record.turns))
            measures += dataset.first_size(number, record)
    except DataError as error:
        return Finding(number, row, reason=error.reason, message=str(error))
    warnings = [*normalize_boxes(record).warnings, compare_size(record, measures[-2:])]
    said = tuple((warning.reason, str(warning)) for warning in warnings if warning is not None)
    return Finding(number, row, len(record.media), measures, fate, warnings=said)


def check_dataset(
    dataset: "MultimodalDataset | PlainFiles",
    *,
    num_workers: int | None = None,
    complain: Callable[[str], None] = print,
    warn: Callable[[str, str], None] = lambda reason, message: None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[FileReport]:
    """Open every record once, whatever its repeat_times, with its images.

    Args:
        num_workers: processes; default: one per core; 0 works in this process.
        complain: called with each complaint, which begins with `file:line:`.
        warn: called with reason and message of each warning about a usable record.
        progress: called with the number of records done since the last call.

    Returns:
        A report for each annotation file, in order.
    """
    reports = [FileReport(source.index.path, len(source.index)) for source in dataset.sources]
    for findings in _run(dataset, num_cores() if num_workers is None else num_workers):
        for finding in findings:
            report = reports[finding.number]
            line = dataset.sources[finding.number].index.line(finding.row)
            if finding.reason:
                report.rejected.append((finding.row, line, finding.reason))
                if finding.reason == "rejected":
                    report.num_rejected += 1
                elif finding.reason == "empty_answer":  # left out under every policy, so no run stops
                    report.warnings[finding.reason] += 1
                    warn(finding.reason, f"{finding.message} (left out)")
                else:
                    report.complaints[finding.reason] += 1
                    complain(finding.message)
            else:
                report.changes[finding.fate] += finding.fate != "fits"
                if finding.fate == "truncate_text":
                    report.first_cut = report.first_cut or line
                report.num_images += finding.num_images
                report.measures.append(finding.measures)
                for reason, message in finding.warnings:
                    report.warnings[reason] += 1
                    warn(reason, message)
        progress(len(findings))
    return reports


def count_folders(
    dataset: "MultimodalDataset | PlainFiles", progress: Callable[[int], None] = lambda done: None
) -> list[FolderCount]:
    """Compare the names in records with the files of each image folder; no image is opened.

    Files that share a folder are counted together. Records that can't be read name nothing here, and files without an
    image folder have nothing to compare with.

    Args:
        progress: called with the number of records done since the last call.
    """
    folders: dict[str, tuple[ImageFolder, set[str]]] = {}
    for source in dataset.sources:
        if source.folder.folder is None:
            progress(len(source.index))
            continue
        _, named = folders.setdefault(os.path.realpath(source.folder.folder), (source.folder, set()))
        with source.index.reader() as reader:
            for row in range(len(source.index)):
                place = source.index.source(row)
                with contextlib.suppress(RecordError):  # the check of the record itself complains
                    record = getattr(dataset, "parse", parse_record)(reader.parse(row), place)
                    named.update(medium.name for medium in record.media)
                progress(1)
    return [FolderFiles(folder).compare(named) for folder, named in folders.values()]


def write_json(path: str | os.PathLike, reports: Sequence[FileReport], folders: Sequence[FolderCount]) -> None:
    """Write the counts of files and folders, and all missing and superfluous names, for programs to read."""
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
    content = {"files": files, "folders": [folder.to_json() for folder in folders]}
    Path(path).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def count_samples(dataset: MultimodalDataset, reports: Sequence[FileReport]) -> int:
    """Number of samples of an epoch that train: repeated records count each time, unusable ones never."""
    return sum(
        int(np.isin(pick, [row for row, _, _ in report.rejected], invert=True).sum())
        for pick, report in zip(dataset.picks, reports, strict=True)
    )


def write_reject_list(path: str | os.PathLike, reports: Sequence[FileReport]) -> int:
    """Write the unusable records for `reject_list`, {"file", "row", "line", "reason"} per line; returns the number."""
    entries = [
        {"file": os.path.abspath(report.path), "row": row, "line": line, "reason": reason}
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


def _run(dataset, num_workers: int) -> Iterator[list[Finding]]:
    chunks = [
        (number, first, min(first + CHUNK, len(source.index)))
        for number, source in enumerate(dataset.sources)
        for first in range(0, len(source.index), CHUNK)
    ]
    if num_workers == 0:
        for number, first, last in chunks:
            yield [open_record(dataset, number, row) for row in range(first, last)]
        return
    with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(dataset,)) as pool:
        yield from pool.map(_check_chunk, chunks)


def _start_worker(dataset) -> None:
    global _dataset
    die_with_parent()
    _dataset = dataset
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the process that waits for the workers


def _check_chunk(chunk: tuple[int, int, int]) -> list[Finding]:
    number, first, last = chunk
    return [open_record(_dataset, number, row) for row in range(first, last)]
