"""Opens every record and every image of data before training, and reports each error with its place.

One pass measures lengths, which stay in the cache for runs and `plan`, and decodes every image (`opening`).
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ..datasets.dataset import MultimodalDataset
from ..datasets.left_out import ON_PURPOSE, why_left_out
from ..datasets.mixture import Source, open_sources
from ..datasets.plan.budget import DROPPED
from ..datasets.plan.lengths import keep
from ..datasets.plan.measure import Complaint, Measure
from ..datasets.records.records import IMAGE as IMAGE_TAG
from ..datasets.records.records import Record, parse_record
from ..files import absolute_path, build_once, get_cache_dir, locked, text_hash
from .opening import open_file

NUM_FRAMES = 8  # of a video, the dataset's default
HARMLESS = tuple(reason for reason in ON_PURPOSE if reason != "too_long")  # left out on purpose: no run stops
# What released models say of their tiles, for files that are checked without a model.
TILES = {"force_image_size": 448, "dynamic_image_size": True, "min_dynamic_patch": 1, "max_dynamic_patch": 12}
STANDARD = SimpleNamespace(template="internvl2_5", use_thumbnail=True, **TILES)


class PlainFiles:
    """Annotation files without a model: nothing is tokenized; grids are the standard ones (448 px, at most 12 tiles).

    It has what the check asks of a `MultimodalDataset`.

    Args:
        data_paths, image_folders: as `MultimodalDataset` has them.
        parse: of the kind of records, as `MultimodalDataset.parse`.

    Raises:
        DataError: files or folders can't be used; one error names all of them.
    """

    record = MultimodalDataset.record

    def __init__(self, data_paths, image_folders=None, parse: Callable[[object, str], Record] = parse_record):
        self.parse = parse
        self.sources = open_sources(data_paths, image_folders, None, None, STANDARD, {})
        self.picks = [np.arange(len(source.index)) for source in self.sources]
        self.rejected: list[frozenset[int]] = [frozenset()] * len(self.sources)

    def measuring(self, number: int) -> Measure:
        """As `MultimodalDataset.measuring`, without a tokenizer."""
        source = self.sources[number]
        return Measure(source.index, source.folder, source.template, None, NUM_FRAMES, self.parse)


def open_questions(files: Mapping[str, Iterable[Sequence[str]]]) -> PlainFiles:
    """Files of questions, such as benchmarks', as records whose images are compared with those of training data.

    Args:
        files: name of a file -> paths of the images of each of its questions.
    """
    paths = []
    for name, questions in files.items():
        records = []
        for number, images in enumerate(questions):
            named = {"image": list(map(os.path.abspath, images))} if images else {}
            texts = {"query": IMAGE_TAG * len(images) + "?", "response": f"{name} {number}"}
            records.append(json.dumps(named | texts) + "\n")
        lines = "".join(records)
        path = get_cache_dir() / "questions" / text_hash(lines) / f"{name}.jsonl"
        paths.append(build_once(path, partial(Path.write_text, data=lines, encoding="utf-8")))
    return PlainFiles(paths)


Checked = MultimodalDataset | PlainFiles


@dataclass
class FileReport:
    """The findings in one annotation file."""

    source: Source  # the file with its settings
    found: list[Complaint] = field(default_factory=list)  # complaints and warnings, in the order of records
    records: np.ndarray | None = None  # tables of usable records and their images (see `opening`)
    images: np.ndarray | None = None
    # of every record, as training plans them; None without a model
    tokens: np.ndarray | None = None
    tiles: np.ndarray | None = None
    supervised: np.ndarray | None = None
    fates: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.source.index)

    def message(self, complaint: Complaint) -> str:
        """A complaint as it is said, from its `file:line:` on."""
        return str(complaint.error(self.source.index.source(complaint.row)))

    @cached_property
    def left_out(self) -> dict[int, Complaint]:
        """The records that don't train, with the reason of each."""
        return {each.row: each for each in self.found if not each.is_warning}

    @cached_property
    def complaints(self) -> Counter:
        """Number of unusable records by reason, without those that are left out on purpose."""
        return Counter(each.reason for each in self.found if stops(each))

    @cached_property
    def warnings(self) -> Counter:
        """Number of warnings by reason, with records that are left out on purpose."""
        return Counter(each.reason for each in self.found if not stops(each) and each.reason != "rejected")

    @property
    def num_rejected(self) -> int:
        """Number of records on the reject list."""
        return sum(each.reason == "rejected" for each in self.found)

    def rows(self, fate: int) -> np.ndarray:
        """The records with a fate of `plan.lengths`, such as `SHRUNK`; none without a model."""
        return np.flatnonzero(self.fates == fate) if self.fates is not None else np.zeros(0, np.int64)


def stops(complaint: Complaint) -> bool:
    """Whether a run with on_bad_sample='raise' stops at the record, or it never fits."""
    return not complaint.is_warning and complaint.reason not in HARMLESS


def check_dataset(
    dataset: Checked,
    *,
    num_workers: int | None = None,
    say: Callable[[FileReport, Complaint], None] = lambda report, complaint: None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[FileReport]:
    """Open every record once, whatever its repeat_times, with its images.

    Args:
        num_workers: processes; default: one per core; 0 works in this process.
        say: called with each complaint and warning as soon as it is known.
        progress: called with the number of records opened since the last call.

    Returns:
        A report for each annotation file, in order.

    Raises:
        SettingError: the cache can't be written.
        SourceError: a store doesn't answer, or a file has changed.
    """
    reports = []
    for number, source in enumerate(dataset.sources):
        reports.append(report := FileReport(source))
        for complaint in _open(dataset, number, report, num_workers, progress):
            report.found.append(complaint)
            say(report, complaint)
        report.found.sort()
        out = list(report.left_out)
        tables = report.records, report.images
        report.records, report.images = (table[~np.isin(table["row"], out)] for table in tables)
        if report.fates is not None:  # only images that were decoded are known to train
            report.tokens[out] = report.tiles[out] = report.supervised[out] = 0
    return reports


def _open(
    dataset: Checked, number: int, report: FileReport, num_workers: int | None, progress: Callable[[int], None]
) -> Iterator[Complaint]:
    """Fills a report, and gives its complaints and warnings."""
    task, parts, known = dataset.measuring(number), [], set(dataset.rejected[number])
    directory = task.directory
    for part in open_file(task, directory, num_workers):
        found = [each for each in part["complaints"] + part["seen"] if each.row not in dataset.rejected[number]]
        known |= {each.row for each in found if not each.is_warning}
        yield from found
        parts.append(part)
        progress(len(part["num_media"]))
    report.records, report.images = (np.concatenate([part[name] for part in parts]) for name in ("records", "images"))
    late = dataset.rejected[number]
    if isinstance(dataset, MultimodalDataset):
        with locked(directory.with_suffix(".lock")):
            lengths = keep(directory, parts)
        columns = lengths.lay_out(dataset.sources[number].tiling, dataset.budget)
        report.tokens, report.tiles, report.fates = columns
        report.supervised = np.minimum(lengths.supervised, report.tokens)  # an end that is cut off isn't learned
        late = late.union(set(np.flatnonzero(report.fates >= DROPPED).tolist()) - known)
    yield from (Complaint.of(row, why_left_out(dataset, number, row)) for row in sorted(late) if row < len(report))


def count_samples(dataset: Checked, reports: Sequence[FileReport]) -> int:
    """Number of samples of an epoch that train: repeated records count each time, unusable ones never.

    Args:
        dataset: the training data.
        reports: what `check_dataset` returned for it.
    """
    pairs = zip(dataset.picks, reports, strict=True)
    return sum(int((~np.isin(pick, list(report.left_out))).sum()) for pick, report in pairs)


def write_reject_list(path: str | os.PathLike, reports: Sequence[FileReport]) -> int:
    """Write the unusable records for the setting `reject_list`, those that are on it already included.

        {"file": "/data/a.jsonl", "row": 6, "line": 7, "reason": "image_missing"}

    Args:
        path: the file to write, one record per line; `row` counts from 0, `line` from 1.
        reports: what `check_dataset` returned.

    Returns:
        The number of records on the list.
    """
    entries = []
    for report in reports:
        index, file = report.source.index, absolute_path(report.source.index.path)
        for row, each in report.left_out.items():
            line = int(index.source(row).rpartition(":")[2])
            entries.append({"file": file, "row": row, "line": line, "reason": each.reason})
    Path(path).write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return len(entries)
