"""Samples that don't train: policies, the reject list, what takes their place, and how a run speaks of them.

A ``dataset`` is a live `MultimodalDataset`, which uses all of this.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError, RecordError, SettingError
from ..files import HIDDEN, is_url, shown
from ..hub.constants import IGNORE_INDEX
from .plan.budget import BROKEN, DROPPED, FATES, FITS

ON_PURPOSE = ("too_long", "rejected", "empty_answer")  # left out under every policy, not counted as bad
FILLER = "(filler: no sample is left for this rank)"
FILLER_INDEX = -(1 << 31)  # what a sampler yields where no sample is left for a rank; no dataset has this index
SHOWN = 5  # records that one error names
REMEDY = "mend them, or leave them out: reject_list (tools/check_data.py --reject-list), or on_bad_sample='skip'"
KEPT = {"shrink_tiles": "with fewer tiles to fit max_length", "truncate_text": "with their end cut off to fit it"}


def dropped_sample(error: DataError, source: str, tile_size: int) -> dict:
    """The stand-in for a sample that is left out; `collate` moves it into the batch's `dropped`."""
    tiles = filler_sample(tile_size)["tiles"]
    return {"dropped": error.reason, "message": str(error), "source": source, "tiles": tiles}


def filler_sample(tile_size: int) -> dict:
    """What a rank gets in the last step of an epoch when no sample is left for it; nothing is learned from it."""
    return {
        "input_ids": torch.zeros(1, dtype=torch.int64),
        "labels": torch.full((1,), IGNORE_INDEX),
        "num_tiles": 0,
        "tiles": torch.empty(0, 3, tile_size, tile_size, dtype=torch.uint8),
        "source": FILLER,
    }


def read_reject_list(path: str | os.PathLike | None, sources: Sequence) -> list[frozenset[int]]:
    """Indices of the records to leave out, for each file (`mixture.Source`) of a mixture.

    Args:
        path: what `tools/check_data.py --reject-list` wrote; None rejects nothing.

    Raises:
        SettingError: the list is missing or malformed.
    """
    rows: dict[str, set[int]] = {}
    if path is not None:
        try:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                rows.setdefault(file_key(entry["file"]), set()).add(int(entry["row"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"reject list {os.fspath(path)!r} can't be read ({error})"
            raise SettingError("reject_list", problem, "write it with tools/check_data.py --reject-list") from None
    return [frozenset(rows.get(file_key(source.index.path), ())) for source in sources]


def file_key(path: str) -> str:
    """By what reject lists know an annotation file: its real path, or of a URL what messages show."""
    return path if HIDDEN in path else shown(path) if is_url(path) else os.path.realpath(path)


def reasons(dataset: Any, fates: np.ndarray) -> dict[int, str]:
    """Why samples can't be used, by their indices; `fates` are those of `layout`, here and below."""
    located = ((index, *dataset.locate(index)) for index in np.flatnonzero(fates == BROKEN).tolist())
    return {index: dataset.lengths(number).complaints[row].reason for index, number, row in located}


def require_usable(dataset: Any, fates: np.ndarray) -> None:
    """Raises one `RecordError` about all records that can't be used, without those left out on purpose."""
    indices = [index for index, reason in reasons(dataset, fates).items() if reason not in ON_PURPOSE]
    records = list(dict.fromkeys(map(dataset.locate, indices)))  # a record may be repeated
    errors = [why_left_out(dataset, number, row) for number, row in records[:SHOWN]]
    if errors:
        head = [f"{len(records)} records can't be used:"] if len(records) > 1 else []
        more = [f"and {len(records) - SHOWN} more"] if len(records) > SHOWN else []
        raise RecordError(errors[0].reason, "\n".join([*head, *map(str, errors), *more]), REMEDY)


def why_left_out(dataset: Any, number: int, row: int) -> RecordError:
    """Why a record is left out of the plan."""
    source = dataset.sources[number].index.source(row)
    if row in dataset.rejected[number]:
        return RecordError("rejected", "on the reject list", place=source)
    complaint = dataset.lengths(number).complaints.get(row)
    if complaint is not None:
        return complaint.error(source)
    remedy = "raise max_length or shorten the record"
    return RecordError("too_long", "too long even with one tile per image", remedy, source)


def left_out(dataset: Any, fates: np.ndarray) -> list[dict]:
    """The samples that a plan leaves out, each with index, dataset, dropped (the reason) and message."""
    entries = []
    for index in np.flatnonzero(fates >= DROPPED).tolist():
        number, row = dataset.locate(index)
        error, name = why_left_out(dataset, number, row), dataset.sources[number].name
        entries.append({"index": index, "dataset": name, "dropped": error.reason, "message": str(error)})
    return entries


def describe(dataset: Any, fates: np.ndarray) -> str:
    """One line: how many samples will train, and what happens to the others."""
    counts = Counter(FATES[code] for code in fates[(fates != FITS) & (fates != BROKEN)].tolist())
    counts.update(reasons(dataset, fates).values())
    changes = ", ".join(f"{counts[name]:,} {words}" for name, words in KEPT.items() if counts[name])
    left = ", ".join(f"{count:,} {name}" for name, count in counts.most_common() if count and name not in KEPT)
    told = f"data: {int((fates < DROPPED).sum()):,} of {len(fates):,} samples will train"
    told += f"; left out: {left}" if left else ""
    return told + (f"; of those that train, {changes}" if changes else "")
