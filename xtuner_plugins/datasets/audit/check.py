"""Opens every record and every image of a dataset before any training, and says what is wrong where."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...hub.constants import IGNORE_INDEX
from ...processes import die_with_parent, num_cores
from ..dataset import MultimodalDataset
from ..errors import DataError, MediaError
from ..images.media import MAX_PIXELS, ImageFolder, load_image
from ..images.video import load_frames
from ..mixture import raise_together
from ..records.boxes import compare_size, normalize_boxes
from ..records.index import OffsetIndex, scan
from ..records.records import Record, parse_record

NUM_FRAMES = 8  # of a video, as the dataset's default
CHUNK = 64  # records that a worker takes at a time
COLUMNS = ("tokens", "supervised", "tiles", "turns", "width", "height")

_dataset = None  # a worker's own copy


@dataclass
class FileReport:
    """What was found in one annotation file.

    Attributes:
        complaints: number of unusable records by reason.
        rejected: (index of the record, line, reason) of each, and of those that the dataset's own reject list names.
        num_rejected: records on that list; they aren't opened.
        changes: number of usable records by what it took to fit `max_length` ('shrink_tiles', 'truncate_text').
        first_cut: line of the first record whose end is cut off, 0 without one.
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
        """One measure of every usable record, int64; sizes without those of records without images."""
        values = np.array([row[COLUMNS.index(name)] for row in self.measures], np.int64)
        return values[values > 0] if name in ("width", "height") else values


@dataclass(frozen=True)
class Finding:
    """One record, opened: either what it measures, with (reason, message) of each warning, or what is wrong with it."""

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

    Raises:
        SettingError, RecordError: files or folders that can't be used, all of them in one error.
    """

    @dataclass(frozen=True)
    class Source:
        """One annotation file and the folder of its images."""

        index: OffsetIndex
        folder: ImageFolder

    def __init__(self, data_paths: Sequence[str], image_folders: Sequence[str | None], max_pixels: int = MAX_PIXELS):
        self.sources, errors = [], []
        for path, folder in zip(data_paths, image_folders, strict=True):
            try:
                self.sources.append(self.Source(scan(path), ImageFolder(folder, Path(path).parent)))
            except DataError as error:
                errors.append(error)
        raise_together(errors)
        self.max_pixels = max_pixels

    def open(self, number: int, row: int) -> tuple[Record, tuple[int, ...]]:
        """A record and its `COLUMNS`."""
        source = self.sources[number]
        record = parse_record(source.index.parse(row), source.index.source(row))
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
    """Open every record once (however often it is repeated) with its images.

    Args:
        num_workers: processes; None takes one per core, 0 works in this one.
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
            line = int(dataset.sources[finding.number].index.lines[finding.row])
            if finding.reason:
                report.rejected.append((finding.row, line, finding.reason))
                if finding.reason == "rejected":
                    report.num_rejected += 1
                elif finding.reason == "empty_answer":  # left out whatever the policy, so it stops nobody
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


def count_samples(dataset: MultimodalDataset, reports: Sequence[FileReport]) -> int:
    """Samples of an epoch that train: a record counts as often as it is repeated, an unusable one not at all."""
    return sum(
        int(np.isin(pick, [row for row, _, _ in report.rejected], invert=True).sum())
        for pick, report in zip(dataset.picks, reports, strict=True)
    )


def write_reject_list(path: str | os.PathLike, reports: Sequence[FileReport]) -> int:
    """Write the unusable records as jsonl, {"file", "row", "line", "reason"} each; returns their number.

    `MultimodalDataset(reject_list=path)` leaves them out.
    """
    entries = [
        {"file": os.path.abspath(report.path), "row": row, "line": line, "reason": reason}
        for report in reports
        for row, line, reason in report.rejected
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return len(entries)


def histogram(values: np.ndarray, num_bins: int = 10) -> list[tuple[str, int]]:
    """(range, count) of equally wide bins over whole numbers; empty without values."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is asked to stop is the process that waits for the workers


def _check_chunk(chunk: tuple[int, int, int]) -> list[Finding]:
    number, first, last = chunk
    return [open_record(_dataset, number, row) for row in range(first, last)]
