"""Unusable samples: policies, the reject list, and what takes the place of a sample."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import DataError, SettingError
from ..files import HIDDEN, is_url, shown
from ..hub.constants import IGNORE_INDEX

POLICIES = ("raise", "skip")
ON_PURPOSE = ("too_long", "rejected", "empty_answer")  # left out under every policy, not counted as bad
FILLER = "(filler: no sample is left for this rank)"
FILLER_INDEX = -(1 << 31)  # what a sampler yields where no sample is left for a rank; no dataset has this index


def dropped_sample(error: DataError, source: str, tile_size: int, max_bad_samples: int = 100) -> dict:
    """The stand-in for a sample that is left out; `collate` moves it into the batch's `dropped`."""
    return {
        "dropped": error.reason,
        "message": str(error),
        "source": source,
        "max_bad_samples": max_bad_samples,
        "tiles": torch.empty(0, 3, tile_size, tile_size, dtype=torch.uint8),
    }


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
    """Indices of the records to leave out, for each file of a mixture.

    Args:
        path: what `tools/check_data.py --reject-list` wrote; None rejects nothing.
        sources: the mixture's files (`mixture.Source`).

    Raises:
        SettingError: the list is missing or malformed.
    """
    rows: dict[str, set[int]] = {}
    if path is not None:
        try:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                rows.setdefault(_key(entry["file"]), set()).add(int(entry["row"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingError(
                "reject_list",
                f"reject list {os.fspath(path)!r} can't be read ({error})",
                "write it with tools/check_data.py --reject-list",
            ) from None
    return [frozenset(rows.get(file_key(source.index), ())) for source in sources]


def file_key(index: object) -> str:
    """By what reject lists know an annotation file: its real path, or of a URL what messages show.

    Args:
        index: its records (`records.opening.RecordSource`).
    """
    return _key(index.path)


def _key(path: str) -> str:
    return path if HIDDEN in path else shown(path) if is_url(path) else os.path.realpath(path)
