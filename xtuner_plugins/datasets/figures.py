"""Tokens, tiles and supervised tokens of an average sample, file by file."""

from dataclasses import dataclass

from .dataset import MultimodalDataset
from .plan.lengths import DROPPED


@dataclass(frozen=True)
class FileFigures:
    """An annotation file as an epoch uses it."""

    name: str
    samples: int  # of an epoch, unusable ones included
    tokens: float = float("nan")  # mean of a usable sample; NaN where none was measured
    tiles: float = float("nan")
    supervised: float = float("nan")
    seen: int = 0  # samples that the means are of: all usable ones, or none
    is_measured: bool = False


def file_figures(dataset: MultimodalDataset) -> list[FileFigures]:
    """The figures of each file, from the lengths in the cache."""
    named = [(source.name, len(pick)) for source, pick in zip(dataset.sources, dataset.picks, strict=True)]
    if not dataset.is_measured():
        return [FileFigures(*each) for each in named]
    figures = []
    for number, (name, samples) in enumerate(named):
        lengths, pick = dataset.lengths(number), dataset.picks[number]
        tokens, tiles, fates = lengths.lay_out(dataset.sources[number].tiling, dataset.budget)
        rows = pick[fates[pick] < DROPPED]
        means = [float(column[rows].mean()) for column in (tokens, tiles, lengths.supervised)] if len(rows) else []
        figures.append(FileFigures(name, samples, *means, seen=len(rows), is_measured=True))
    return figures
