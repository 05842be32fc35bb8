"""Opens every record and every picture of a dataset before any training, and says what is wrong where."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch

from .dataset import MultimodalDataset
from .errors import DataError

CHUNK = 64  # records a worker takes at a time

_dataset: MultimodalDataset | None = None  # a worker's own copy


@dataclass
class FileReport:
    """What was found in one annotation file."""

    path: str
    num_records: int = 0
    num_pictures: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    num_tiles: int = 0
    longest: int = 0
    complaints: Counter = field(default_factory=Counter)  # by reason

    @property
    def num_wrong(self) -> int:
        return sum(self.complaints.values())


@dataclass(frozen=True)
class Finding:
    """One record, opened: either what it measures or what is wrong with it."""

    number: int  # of the file
    row: int  # of the record in it
    num_pictures: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    num_tiles: int = 0
    reason: str = ""
    message: str = ""


def check_dataset(dataset: MultimodalDataset, *, num_workers: int | None = None,
                  complain: Callable[[str], None] = print,
                  progress: Callable[[int], None] = lambda done: None) -> list[FileReport]:
    """Open every record once (however often it is repeated) with its pictures, as training will.

    Args:
        num_workers: processes; None takes one a core, 0 works in this one.
        complain: called with each complaint, which begins with `file:line:`.
        progress: called with the number of records done since the last call.

    Returns:
        A report for each annotation file, in order.
    """
    reports = [FileReport(source.index.path, len(source.index)) for source in dataset.sources]
    for findings in _run(dataset, os.cpu_count() or 1 if num_workers is None else num_workers):
        for finding in findings:
            report = reports[finding.number]
            if finding.reason:
                report.complaints[finding.reason] += 1
                complain(finding.message)
                continue
            report.num_pictures += finding.num_pictures
            report.num_tokens += finding.num_tokens
            report.num_supervised += finding.num_supervised
            report.num_tiles += finding.num_tiles
            report.longest = max(report.longest, finding.num_tokens)
        progress(len(findings))
    return reports


def check_record(dataset: MultimodalDataset, number: int, row: int) -> Finding:
    """Open one record with its pictures."""
    try:
        sample = dataset.load(number, row)
    except DataError as error:
        return Finding(number, row, reason=error.reason, message=str(error))
    labels = sample["labels"]
    return Finding(number, row, len(dataset.record(number, row).media), len(labels),
                   int((labels != -100).sum()), sample["num_tiles"])


def _run(dataset: MultimodalDataset, num_workers: int) -> Iterator[list[Finding]]:
    chunks = [(number, first, min(first + CHUNK, len(source.index)))
              for number, source in enumerate(dataset.sources) for first in range(0, len(source.index), CHUNK)]
    if num_workers == 0:
        for number, first, last in chunks:
            yield [check_record(dataset, number, row) for row in range(first, last)]
        return
    with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(dataset,)) as pool:
        yield from pool.map(_check_chunk, chunks)


def _start_worker(dataset: MultimodalDataset) -> None:
    global _dataset
    _dataset = dataset
    torch.set_num_threads(1)


def _check_chunk(chunk: tuple[int, int, int]) -> list[Finding]:
    number, first, last = chunk
    return [check_record(_dataset, number, row) for row in range(first, last)]
