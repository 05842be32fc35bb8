"""Log probabilities of the reference model, computed once and kept on disk.

A folder under a hash of all that they depend on holds a file for every `CHUNK` records. Each is written whole or not at
all, so a start that was stopped goes on::

    00007.npz   ends    int64 [n], where each record ends in values; a record without any is empty
                values  float32, of the supervised tokens of chosen and rejected answer, record after record
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..files import array_hash, save, text_hash
from .plan.budget import DROPPED
from .preference import PreferenceDataset

SETTING = "default_hooks.reference.folder"  # that names the folder
CHUNK = 256  # records of a file: what a crash can lose on each rank


class ReferenceLogProbs:
    """The log probabilities of all records that the samples of a dataset are made of.

    Args:
        folder: For all runs.
        dataset: Its files, texts, names of images, template, tokenizer, tiles and limits tell one folder from another.
        model: So does what the reference is: hashes of its files, and how its weights are held.

    Attributes:
        folder: Of these log probabilities.
        num_records: Number of the records.
    """

    def __init__(self, folder: str | Path, dataset: PreferenceDataset, model: Sequence[str]):
        fits = np.split(dataset.layout()[2] < DROPPED, dataset.ends[:-1])
        self._rows = [np.unique(pick[kept]) for pick, kept in zip(dataset.picks, fits, strict=True)]
        self._starts = np.cumsum([0, *map(len, self._rows)])
        self.num_records = int(self._starts[-1])
        keys = (dataset.measuring(number).key() for number in range(len(dataset.sources)))
        own = [text_hash(key, repr(each.tiling)) for key, each in zip(keys, dataset.sources, strict=True)]
        self.folder = Path(folder, text_hash(*own, repr(dataset.budget), array_hash(*self._rows), *model))

    def missing(self) -> list[int]:
        """The chunks that no file holds yet."""
        return [chunk for chunk in range(-(-self.num_records // CHUNK)) if not self._file(chunk).exists()]

    def records(self, chunk: int) -> list[tuple[int, int]]:
        """File and row of each record of a chunk; every chunk has as many: the last one repeats its last record."""
        positions = np.arange(min(CHUNK, self.num_records)) + chunk * CHUNK
        positions = np.minimum(positions, self.num_records - 1)
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        return [(int(n), int(self._rows[n][p - self._starts[n]])) for n, p in zip(numbers, positions, strict=True)]

    def begin(self) -> None:
        """Notes the records, which tells whether the folder can be written; raises `SettingError` where it can't."""
        save(self.folder / "records.npz", {"rows": np.concatenate(self._rows), "starts": self._starts}, SETTING)

    def save(self, chunk: int, values: Sequence[np.ndarray]) -> None:
        """Writes the log probabilities of a chunk's records, float32; raises `SettingError` where it can't."""
        ends = np.cumsum([len(each) for each in values])
        save(self._file(chunk), {"ends": ends, "values": np.concatenate(values)}, SETTING)

    def of(self, number: int, row: int, count: int, source: str) -> np.ndarray:
        """Those of a record, float32 ``[count]``."""
        position = self._starts[number] + np.searchsorted(self._rows[number], row)
        chunk, place = divmod(int(position), CHUNK)
        ends, values = _read(self._file(chunk))
        values = values[ends[place - 1] if place else 0 : ends[place]]
        assert len(values) == count, f"{source}: {len(values)} log probabilities, {count} tokens; remove {self.folder}"
        return values

    def _file(self, chunk: int) -> Path:
        return self.folder / f"{chunk:05}.npz"


@lru_cache(maxsize=32)  # half a MB each
def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        return content["ends"], content["values"]
