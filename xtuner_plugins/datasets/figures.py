"""Tokens, tiles and supervised tokens of an average sample, file by file."""

import time
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from ..hub.constants import IGNORE_INDEX
from .dataset import MultimodalDataset
from .plan.lengths import DROPPED

LOOK_AT = 64  # samples of all files together, where lengths aren't measured
LOOK_SECONDS = 3.0  # and no longer than that


@dataclass(frozen=True)
class FileFigures:
    """An annotation file as an epoch uses it.

    Attributes:
        name: of the file.
        samples: of an epoch, unusable ones included.
        tokens, tiles, supervised: mean of a usable sample; NaN where none was seen.
        seen: number of samples that the means are of.
        is_measured: whether that is all usable ones, and not a random choice.
    """

    name: str
    samples: int
    tokens: float
    tiles: float
    supervised: float
    seen: int
    is_measured: bool


def file_figures(dataset: MultimodalDataset) -> list[FileFigures]:
    """The figures of each file: of all samples where lengths are in the cache, else of some that are opened now."""
    if dataset.is_measured():
        return [_measured(dataset, number) for number in range(len(dataset.sources))]
    until, each = time.monotonic() + LOOK_SECONDS, max(2, LOOK_AT // len(dataset.sources))
    return [_looked_at(dataset, number, each, until) for number in range(len(dataset.sources))]


def _measured(dataset: MultimodalDataset, number: int) -> FileFigures:
    source, pick, lengths = dataset.sources[number], dataset.picks[number], dataset.lengths(number)
    tokens, tiles, fates = lengths.lay_out(source.tiling, dataset.budget)
    rows = pick[fates[pick] < DROPPED]
    return _figures(dataset, number, [tokens[rows], tiles[rows], lengths.supervised[rows]], is_measured=True)


def _looked_at(dataset: MultimodalDataset, number: int, most: int, until: float) -> FileFigures:
    found: list[tuple[int, int, int]] = []
    for row in np.random.default_rng(0).permutation(dataset.picks[number])[:most]:
        if time.monotonic() > until:
            break
        try:
            sample = dataset.load(number, int(row))
        except DataError:  # training will name it, or leave it out
            continue
        supervised = int((sample["labels"][1:] != IGNORE_INDEX).sum())
        found.append((len(sample["input_ids"]), sample["num_tiles"], supervised))
    columns = np.array(found, np.int64).reshape(-1, 3).T
    return _figures(dataset, number, list(columns), is_measured=False)


def _figures(dataset: MultimodalDataset, number: int, columns: list[np.ndarray], is_measured: bool) -> FileFigures:
    seen = len(columns[0])
    means = (float(column.mean()) if seen else float("nan") for column in columns)
    return FileFigures(dataset.sources[number].name, len(dataset.picks[number]), *means, seen, is_measured)
