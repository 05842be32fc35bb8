"""Log probabilities of the reference model, computed once and kept on disk.

A folder under a hash of all that they depend on::

    chunk_00000.npz   of `CHUNK` records: `rows` [n], `ends` [n], `values` float32
    ...
    whole/values.npy  float32, the supervised tokens of chosen and rejected answer, record after record
    whole/ends.npy    int64 [records of all files], where each record ends in it; a record without any is empty

Chunks are those of a run that was stopped: the next one computes what is missing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .cache import array_hash, locked, open_array, save, text_hash, writing
from .errors import RecordError, SettingError
from .preference import PreferenceDataset

CHUNK = 256  # records that a rank computes between two files, and a crash can lose


def reference_key(dataset: PreferenceDataset, records: np.ndarray, base: list[str], held: str) -> str:
    """A hash of what the log probabilities depend on.

    Args:
        dataset: Its files, texts, names of images, template, tokenizer, tiles and limits.
        records: As `rows_of`: another share of a file has other ones.
        base: Hashes of the reference's files.
        held: How its weights are held: their dtype, and what is quantized.
    """
    own = [
        text_hash(dataset._measuring(number).key(dataset.cache_dir), repr(source.tiling))
        for number, source in enumerate(dataset.sources)
    ]
    return text_hash(*own, repr(dataset.budget), array_hash(records), held, *base)


def rows_of(dataset: PreferenceDataset, samples: np.ndarray) -> np.ndarray:
    """Numbers of the records that some samples are made of, over all files, each once, int64."""
    firsts = _firsts(dataset)
    return np.unique([firsts[number] + row for number, row in map(dataset.locate, samples.tolist())]).astype(np.int64)


def place_of(dataset: PreferenceDataset, record: int) -> tuple[int, int]:
    """The file and the row in it of a record's number over all files."""
    firsts = _firsts(dataset)
    number = int(np.searchsorted(firsts, record, side="right")) - 1
    return number, record - int(firsts[number])


def _firsts(dataset: PreferenceDataset) -> np.ndarray:
    return np.cumsum([0] + [len(source.index) for source in dataset.sources[:-1]])


class ReferenceLogProbs:
    """The log probabilities in a folder, memory-mapped.

    Args:
        folder: Whole.
        dataset: That reads them.
    """

    def __init__(self, folder: Path, dataset: PreferenceDataset):
        self._folder, self._firsts = folder, _firsts(dataset)
        self._values, self._ends = (open_array(folder / "whole" / f"{name}.npy") for name in ("values", "ends"))

    def of(self, number: int, row: int, count: int, source: str) -> np.ndarray:
        """Those of a record, float32 ``[count]``.

        Raises:
            RecordError: There are none, or another number.
        """
        record = int(self._firsts[number]) + row
        values = self._values[self._ends[record - 1] if record else 0 : self._ends[record]]
        if len(values) != count:
            raise RecordError(
                "plan_changed",
                f"{len(values)} log probabilities of the reference were computed, but its answers have {count} tokens",
                f"remove {self._folder} and start again: they are then computed again",
                source,
            )
        return values


def save_chunk(folder: Path, chunk: int, rows: np.ndarray, values: list[np.ndarray]) -> None:
    """Writes the log probabilities of a chunk's records, whole or not at all."""
    ends = np.cumsum([len(each) for each in values])
    content = {"rows": rows, "ends": ends, "values": np.concatenate(values).astype(np.float32)}
    with _keeping():
        save(_chunk_file(folder, chunk), content)


def prepare(folder: Path) -> None:
    """Makes the folder.

    Raises:
        SettingError: Nothing can be written there, which would otherwise be found after the first chunk.
    """
    with _keeping(), locked(folder / "join.lock"):
        pass


@contextlib.contextmanager
def _keeping() -> Iterator[None]:
    """Names the setting of this folder where it can't be written, in place of the data cache's."""
    try:
        yield
    except SettingError as error:
        remedy = "make room and give write permission there, or name another folder: default_hooks.reference.folder"
        raise SettingError("reference_folder", error.problem, remedy, error.place) from None


def missing_chunks(folder: Path, num_chunks: int) -> list[int]:
    """The chunks that no file holds yet."""
    return [chunk for chunk in range(num_chunks) if not _chunk_file(folder, chunk).exists()]


def join_chunks(folder: Path, num_chunks: int, num_records: int) -> None:
    """Makes `ReferenceLogProbs` of the chunks, and removes them; of several runs that computed them, one does so."""
    with _keeping(), locked(folder / "join.lock"):
        if not is_whole(folder):
            _join(folder, num_chunks, num_records)
        for chunk in range(num_chunks):
            _chunk_file(folder, chunk).unlink(missing_ok=True)


def _join(folder: Path, num_chunks: int, num_records: int) -> None:
    counts, parts = np.zeros(num_records, np.int64), {}
    for chunk in range(num_chunks):
        with np.load(_chunk_file(folder, chunk), allow_pickle=False) as content:
            counts[content["rows"]] = np.diff(content["ends"], prepend=0)
            parts[int(content["rows"][0])] = content["values"]
    unfinished = folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with writing(folder):
        unfinished.mkdir(parents=True)
        np.save(unfinished / "values.npy", np.concatenate([parts[first] for first in sorted(parts)]))
        np.save(unfinished / "ends.npy", counts.cumsum())
        unfinished.rename(folder / "whole")


def is_whole(folder: Path) -> bool:
    """Whether all log probabilities are there."""
    return (folder / "whole").is_dir()


def _chunk_file(folder: Path, chunk: int) -> Path:
    return folder / f"chunk_{chunk:05}.npz"
