"""Opens every record and every image of data before training, and reports each error with its place.

Lengths are measured first, as a run measures them, and stay in the cache for runs and `plan`. Then every image is
decoded (`opening`).
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ..datasets.dataset import MultimodalDataset
from ..datasets.images.media import ImageFolder
from ..datasets.images.tiling import DynamicTiling
from ..datasets.left_out import why_left_out
from ..datasets.mixture import Source, open_sources
from ..datasets.plan.lengths import DROPPED, SHRUNK, TRUNCATED
from ..datasets.records.records import IMAGE as IMAGE_TAG
from ..datasets.records.records import Record, parse_record
from ..files import absolute_path, text_hash
from .facts import IMAGE, RECORD
from .opening import Opening, Trouble, open_all

NUM_FRAMES = 8  # of a video, the dataset's default
# What released models say of their tiles, for files that are checked without a model.
STANDARD = SimpleNamespace(
    template="internvl2_5",
    force_image_size=448,
    dynamic_image_size=True,
    min_dynamic_patch=1,
    max_dynamic_patch=12,
    use_thumbnail=True,
)


class PlainFiles:
    """Annotation files without a model: nothing is tokenized; grids are the standard ones (448 px, at most 12 tiles).

    It has what the check asks of a `MultimodalDataset`.

    Args:
        data_paths, image_folders: as `MultimodalDataset` has them.
        parse: of the kind of records, as `MultimodalDataset.parse`.

    Raises:
        DataError: files or folders can't be used; one error names all of them.
    """

    num_frames = NUM_FRAMES

    def __init__(self, data_paths, image_folders=None, parse: Callable[[object, str], Record] = parse_record):
        self.parse = parse
        self.sources = open_sources(data_paths, image_folders, None, None, STANDARD, {})
        self._pick_all()

    def _pick_all(self) -> None:
        self.picks = [np.arange(len(source.index)) for source in self.sources]
        self.rejected: list[frozenset[int]] = [frozenset()] * len(self.sources)

    def record(self, number: int, row: int) -> Record:
        """As `MultimodalDataset.record`."""
        index = self.sources[number].index
        return self.parse(index.parse(row), index.source(row))


class Questions(PlainFiles):
    """Files of questions about images, such as benchmarks', whose images are compared with those of training data.

    Args:
        files: name of a file -> name of a question -> paths of its images.
    """

    def __init__(self, files: Mapping[str, Mapping[str, Sequence[str]]]):
        self.parse = parse_record
        found = [Asked(name, list(asked.items())) for name, asked in files.items()]
        common = {"folder": ImageFolder(None), "tiling": DynamicTiling(), "repeat": 1.0}
        self.sources = [SimpleNamespace(name=index.path, index=index, **common) for index in found]
        self._pick_all()


@dataclass(frozen=True)
class Asked:
    """The questions of a file, each as a record without its text; takes the place of `records.opening.RecordSource`."""

    path: str
    questions: Sequence[tuple[str, Sequence[str]]]

    def __len__(self) -> int:
        return len(self.questions)

    def source(self, row: int) -> str:
        """The name of a question."""
        return f"{self.path}#{self.questions[row][0]}"

    def parse(self, row: int) -> dict:
        """Its images in a record."""
        images = list(map(str, self.questions[row][1]))
        turns = [{"from": "human", "value": f"{IMAGE_TAG * len(images)}?"}, {"from": "gpt", "value": self.source(row)}]
        return {"conversations": turns, **({"image": images} if images else {})}

    def fingerprint(self) -> str:
        """As `RecordSource.fingerprint`."""
        return text_hash(repr(self.questions))


Checked = MultimodalDataset | PlainFiles


@dataclass
class FileReport:
    """The findings in one annotation file.

    Attributes:
        source: the file with its settings.
        troubles: complaints and warnings, in the order of records.
        records, images: tables of usable records and their images (see `facts`).
        tokens, tiles, supervised, fates: of every record, as training plans them; None without a model.
    """

    source: Source
    troubles: list[Trouble] = field(default_factory=list)
    records: np.ndarray = field(default_factory=lambda: np.zeros(0, RECORD))
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, IMAGE))
    tokens: np.ndarray | None = None
    tiles: np.ndarray | None = None
    supervised: np.ndarray | None = None
    fates: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.source.index)

    @property
    def left_out(self) -> dict[int, Trouble]:
        """The records that don't train, with the reason of each."""
        return {each.row: each for each in self.troubles if not each.is_warning}

    @property
    def complaints(self) -> Counter:
        """Number of unusable records by reason, without those that are left out on purpose."""
        return Counter(each.reason for each in self.troubles if each.is_complaint)

    @property
    def warnings(self) -> Counter:
        """Number of warnings by reason, with records that are left out on purpose."""
        return Counter(each.reason for each in self.troubles if not each.is_complaint and each.reason != "rejected")

    def rows(self, fate: int) -> np.ndarray:
        """The records with a fate of `plan.lengths`, such as `SHRUNK`."""
        return np.flatnonzero(self.fates == fate) if self.fates is not None else np.zeros(0, np.int64)

    @property
    def shrunk(self) -> np.ndarray:
        """Records with fewer tiles, to fit `max_length`."""
        return self.rows(SHRUNK)

    @property
    def cut(self) -> np.ndarray:
        """Records with their end cut off, to fit `max_length`."""
        return self.rows(TRUNCATED)


def check_dataset(
    dataset: Checked,
    *,
    num_workers: int | None = None,
    say: Callable[[Trouble], None] = lambda trouble: None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[FileReport]:
    """Open every record once, whatever its repeat_times, with its images.

    Args:
        num_workers: processes; default: one per core; 0 works in this process.
        say: called with each complaint and warning as soon as it is known.
        progress: called with the number of records measured (with a model), then opened, since the last call.

    Returns:
        A report for each annotation file, in order.

    Raises:
        SettingError: the cache can't be written.
        SourceError: a store doesn't answer, or a file has changed.
    """
    reports = [FileReport(source) for source in dataset.sources]
    for number, report in enumerate(reports):
        report.troubles = list(_planned(dataset, number, report, num_workers, progress))
        for trouble in report.troubles:
            say(trouble)
    tasks = [Opening.of(dataset, number) for number in range(len(reports))]
    parts: list[list] = [[] for _ in tasks]
    for number, (done, found) in open_all(tasks, num_workers):
        report, known = reports[number], reports[number].left_out
        for trouble in found.pop("troubles"):
            if trouble.row not in known:
                report.troubles.append(trouble)
                say(trouble)
        parts[number].append(found)
        progress(done)
    for report, found in zip(reports, parts, strict=True):
        report.troubles.sort(key=lambda trouble: trouble.row)
        out = list(report.left_out)
        for name in ("records", "images"):
            table = np.concatenate([getattr(report, name), *(part[name] for part in found)])
            setattr(report, name, table[~np.isin(table["row"], out)])
        if report.fates is not None:  # only images that were decoded are known to train
            report.tokens[out] = report.tiles[out] = report.supervised[out] = 0
    return reports


def _planned(
    dataset: Checked, number: int, report: FileReport, num_workers: int | None, progress: Callable[[int], None]
) -> Iterator[Trouble]:
    """Measures a file, and gives the records that no plan contains."""
    if isinstance(dataset, MultimodalDataset):
        measured = 0

        def count(done: int) -> None:
            nonlocal measured
            measured += done
            progress(done)

        lengths = dataset.lengths(number, num_workers=num_workers, progress=count)
        progress(len(report) - measured)  # that the cache has
        columns = lengths.lay_out(dataset.sources[number].tiling, dataset.budget)
        report.tokens, report.tiles, report.fates = map(np.array, columns)
        report.supervised = np.array(lengths.supervised)
        rows = {*np.flatnonzero(report.fates >= DROPPED).tolist(), *dataset.rejected[number]}
        for row in sorted(row for row in rows if row < len(report)):
            yield Trouble.of(row, why_left_out(dataset, number, row))


def count_samples(dataset: Checked, reports: Sequence[FileReport]) -> int:
    """Number of samples of an epoch that train: repeated records count each time, unusable ones never."""
    columns = zip(dataset.picks, reports, strict=True)
    return sum(int(np.isin(pick, list(report.left_out), invert=True).sum()) for pick, report in columns)


def write_reject_list(path: str | os.PathLike, reports: Sequence[FileReport]) -> int:
    """Write the unusable records for `reject_list`, {"file", "row", "line", "reason"} per line; returns the number.

    Of a URL "file" is what messages show.
    """
    entries = [
        {"file": absolute_path(index.path), "row": row, "line": index.line(row), "reason": trouble.reason}
        for report in reports
        for index in [report.source.index]
        for row, trouble in report.left_out.items()
    ]
    Path(path).write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return len(entries)
