"""Figures of a mixture: its files with their shares of an epoch, and what other limits would do."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from ..datasets.dataset import MultimodalDataset
from ..datasets.plan.lengths import DROPPED, FATES, SHRUNK, TRUNCATED
from .check import Checked, FileReport

FACTORS = (0.5, 1, 2, 4)  # of max_length
TILES = (1, 4, 6, 12)  # besides the setting's own max_tiles

Row = dict[str, Any]


def shares(dataset: Checked, reports: Sequence[FileReport]) -> list[Row]:
    """A row per file: its records, and of an epoch, after `repeat_times`, samples and their shares of the mixture.

    With a model it also has tokens, supervised tokens and tiles.
    """
    rows, names = [], ["samples"]
    for pick, report in zip(dataset.picks, reports, strict=True):
        times = np.bincount(pick, minlength=len(report)).astype(np.int64)
        times[list(report.left_out)] = 0
        row = {"name": report.source.name, "repeat": report.source.repeat, "records": len(report)}
        row |= {"unusable": report.complaints.total(), "images": len(report.images), "samples": int(times.sum())}
        if report.fates is not None:
            names = ["samples", "tokens", "supervised", "tiles"]
            row |= {name: int(getattr(report, name) @ times) for name in names[1:]}
        rows.append(row)
    for name in names:
        total = sum(row[name] for row in rows)
        for row in rows:
            row[f"{name}_share"] = row[name] / total if total else 0.0
    return rows


def what_if(dataset: Checked, reports: Sequence[FileReport]) -> list[Row]:
    """What another `max_length` or `max_tiles` would do to an epoch, by the measured lengths; [] without a model.

    Each row has the setting, whether it is the current one, and samples that train, shrink, are cut or left out, with
    tokens and tiles of the epoch.
    """
    if not isinstance(dataset, MultimodalDataset):
        return []
    own, current = max(source.tiling.max_tiles for source in dataset.sources), dataset.budget.max_length
    lengths = sorted({max(1, int(current * factor)) for factor in FACTORS})
    rows = []
    for max_length, max_tiles in product(lengths, sorted({*TILES, own})):
        setting = {"max_length": max_length, "max_tiles": max_tiles}
        setting["is_current"] = (max_length, max_tiles) == (current, own)
        rows.append(setting | _epoch_with(dataset, max_length, max_tiles, own))
    return rows


def _epoch_with(dataset: MultimodalDataset, max_length: int, max_tiles: int, own: int) -> Row:
    """Sums of an epoch; files with limits of their own keep lower ones than `max_tiles`."""
    total, tokens, tiles = np.zeros(len(FATES), np.int64), 0, 0
    for number, source in enumerate(dataset.sources):
        tiling = source.tiling
        if max_tiles != own:
            limit = max_tiles if tiling.max_tiles == own else min(max_tiles, tiling.max_tiles)
            tiling = replace(tiling, min_tiles=min(tiling.min_tiles, max_tiles), max_tiles=limit)
        lengths = dataset.lengths(number)
        columns = lengths.lay_out(tiling, replace(dataset.budget, max_length=max_length))
        times = np.bincount(dataset.picks[number], minlength=len(lengths)).astype(np.int64)
        times[list(dataset.rejected[number])] = 0
        total += np.bincount(columns[2], times, len(FATES)).astype(np.int64)
        tokens, tiles = tokens + int(columns[0] @ times), tiles + int(columns[1] @ times)
    fates = {"shrunk": int(total[SHRUNK]), "cut": int(total[TRUNCATED]), "too_long": int(total[DROPPED])}
    return {"samples": int(total[:DROPPED].sum()), **fates, "tokens": tokens, "tiles": tiles}
