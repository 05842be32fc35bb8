"""The length of every record before training: exact token counts, image sizes, and errors.

Measured once per file, in parallel, without decoding images. The arrays are kept on disk under a hash of everything
they depend on (the file, the tokenizer, the template, the image folder) and are memory-mapped. A crash loses at most
the chunks being measured, and of several processes that start together one measures while the others wait.

A broken record may have been mended since, so each start measures broken records again, and the whole file where one
has another result. Other records aren't measured again: a worker that finds another length than planned reports it
(`report_change`), and the next start measures the whole file.

    text_tokens [R]   tokens outside the images' spans
    sizes [M, 2]      width and height of each image, from its header; record r has media_ends[r-1]:media_ends[r]
    prefix [R, 2]     text tokens and images before the first supervised token

Tiles and tokens follow from a tiling and a `TileBudget` (`lay_out`), and are kept beside the arrays.
"""

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...files import get_cache_dir, locked, open_array, save, text_hash, writing
from ...processes import map_in_workers
from ..images.stored import StoreImages
from ..images.tiling import DynamicTiling
from ..text.tokens import single_threaded_tokenizer
from .budget import FRAME, TileBudget, first_limit
from .measure import Complaint, Measure

CHUNK = 2000  # records that a worker measures at a time, and a crash can lose
STORE_THREADS = 16  # that ask a store for the images of broken records
FOUND = ("text_tokens", "supervised", "prefix", "num_media", "sizes")  # by `Measure.rows`
ARRAYS = ("text_tokens", "supervised", "prefix", "media_ends", "sizes")
FITS, SHRUNK, TRUNCATED, DROPPED, BROKEN, REJECTED = range(6)
FATES = ("fits", "shrink_tiles", "truncate_text", "too_long", "broken", "rejected")


@dataclass(frozen=True)
class LengthIndex:
    """The measured file (see the module); arrays may be memory-mapped.

    Attributes:
        text_tokens, supervised: int32 `[R]`.
        prefix: int32 `[R, 2]`.
        media_ends: int64 `[R]`.
        sizes: int32 `[M, 2]`.
        complaints: row -> `Complaint` of each unusable record.
    """

    directory: Path
    text_tokens: np.ndarray
    supervised: np.ndarray
    prefix: np.ndarray
    media_ends: np.ndarray
    sizes: np.ndarray
    complaints: dict[int, Complaint]

    def __len__(self) -> int:
        return len(self.text_tokens)

    @classmethod
    def open(cls, directory: Path) -> "LengthIndex | None":
        """The arrays that `current` names; None without that file."""
        for _ in range(3):  # another process may replace them meanwhile
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                folder = directory / (directory / "current").read_text()
                text = (folder / "complaints.json").read_text()
                complaints = {row: Complaint(row, *words) for row, *words in json.loads(text)}
                return cls(folder, *(open_array(folder / f"{name}.npy") for name in ARRAYS), complaints)
        return None

    def holds(self, task: Measure) -> bool:
        """Whether every broken record still is, for the same reason."""

        def same(complaint: Complaint) -> bool:
            return [each.reason for each in task.rows([complaint.row])["complaints"]] == [complaint.reason]

        num_threads = STORE_THREADS if isinstance(task.folder, StoreImages) else 1
        with single_threaded_tokenizer(), ThreadPoolExecutor(num_threads) as pool:
            return all(pool.map(same, self.complaints.values()))

    def lay_out(
        self, tiling: DynamicTiling, budget: TileBudget, *, keep: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What becomes of each record under a budget; kept on disk beside the index.

        Args:
            keep: False computes it in memory, for budgets that nothing will be trained with.

        Returns:
            tokens, tiles: int32 `[R]`, 0 for records that are left out.
            fates: uint8 `[R]`, indices into `FATES`; from `DROPPED` on a record is left out.
        """
        if not keep:
            return self._lay_out(tiling, budget)
        key = text_hash(repr((tiling, budget)))
        paths = [self.directory / f"{name}-{key}.npy" for name in ("tokens", "tiles", "fates")]
        if not all(path.exists() for path in paths):
            for path, array in zip(paths, self._lay_out(tiling, budget), strict=True):
                save(path, array)
        return tuple(map(open_array, paths))

    def _lay_out(self, tiling: DynamicTiling, budget: TileBudget) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        num, num_media = len(self), np.diff(self.media_ends, prepend=0)
        rows = np.repeat(np.arange(num), num_media)
        is_frame = (self.sizes == FRAME).all(1)
        images = np.bincount(rows[~is_frame], minlength=num)
        shares = [first_limit(tiling.max_tiles, count) for count in range(images.max(initial=0) + 1)]
        limits = np.where(is_frame, 1, np.array(shares)[images[rows]])
        tiles = np.bincount(rows, _count_tiles(self.sizes, limits, tiling, budget), minlength=num).astype(np.int32)
        tokens = (self.text_tokens + tiles * budget.tokens_per_tile + 2 * num_media).astype(np.int32)
        fates = np.full(num, FITS, np.uint8)
        fates[list(self.complaints)] = BROKEN
        for row in np.flatnonzero((tokens > budget.max_length) & (fates == FITS)):
            tokens[row], tiles[row], fates[row] = self._fit(int(row), tiling, budget)
        tokens[fates >= DROPPED] = tiles[fates >= DROPPED] = 0
        return tokens, tiles, fates

    def _fit(self, row: int, tiling: DynamicTiling, budget: TileBudget) -> tuple[int, int, int]:
        """Tokens, tiles and fate of a record that is too long, as the worker will find them."""
        first, last = int(self.media_ends[row - 1]) if row else 0, int(self.media_ends[row])
        sizes = [tuple(map(int, size)) for size in self.sizes[first:last]]
        text = int(self.text_tokens[row])
        limits = budget.fit(tiling, sizes, text)
        counts = [budget.count(tiling, size, limit) for size, limit in zip(sizes, limits, strict=True)]
        total = text + budget.tokens(counts)
        if total <= budget.max_length:
            return total, sum(counts), SHRUNK
        before_text, before_media = map(int, self.prefix[row])
        if budget.may_cut and before_text + budget.tokens(counts[:before_media]) < budget.max_length:
            return budget.max_length, sum(counts), TRUNCATED  # upper bounds: a span at the cut is removed whole
        return 0, 0, DROPPED


def _count_tiles(sizes: np.ndarray, limits: np.ndarray, tiling: DynamicTiling, budget: TileBudget) -> np.ndarray:
    """Tiles of each image, int64 `[m]`; each size and limit is counted once."""
    width, height = sizes.T.astype(np.int64)
    _, codes = np.unique(width << 32 | height, return_inverse=True)
    codes = codes.reshape(-1) * (limits.max(initial=0) + 1) + limits  # one number sorts much faster than a row of three
    _, places, inverse = np.unique(codes, return_index=True, return_inverse=True)
    each = [budget.count(tiling, (width[place], height[place]), int(limits[place])) for place in places]
    return np.array(each, np.int64)[inverse.reshape(-1)]


def report_change(directory: Path) -> None:
    """Let the next start measure a whole file again, because the length of a record has changed.

    Args:
        directory: of the outdated `LengthIndex`; where it has already been replaced, nothing happens.

    Raises:
        SettingError: the cache can't be written.
    """
    current = LengthIndex.open(directory.parent)
    if current is not None and current.directory == directory:
        with writing(directory.parent / "current"):
            (directory.parent / "current").unlink(missing_ok=True)


def measure(
    task: Measure,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> LengthIndex:
    """The lengths of a file, from the cache or measured now.

    Args:
        num_workers: processes; default: one for each core that this process may use; 0 measures in this process.
        progress: called with the number of records measured since the last call.
    """
    directory = get_cache_dir() / task.key()
    found = LengthIndex.open(directory)
    if found is None or not found.holds(task):
        with locked(directory.with_suffix(".lock")):
            found = LengthIndex.open(directory)  # another process may have measured meanwhile
            if found is None:  # with chunks of an earlier start that was killed, perhaps
                _build(task, directory, num_workers, progress)
                found = LengthIndex.open(directory)
            if not found.holds(task):
                _build(task, directory, num_workers, progress)
                found = LengthIndex.open(directory)
    return found


def _build(task: Measure, directory: Path, num_workers: int | None, progress: Callable[[int], None]) -> None:
    """Measure the chunks that an earlier start hasn't kept, and join all."""
    parts, total = directory / "parts", len(task.index)
    files = {first: parts / f"{first}.npz" for first in range(0, total, CHUNK)}
    missing = [(range(first, min(first + CHUNK, total)), file) for first, file in files.items() if not file.exists()]
    progress(total - sum(len(rows) for rows, _ in missing))
    with single_threaded_tokenizer():
        for done in map_in_workers(partial(_measure_chunk, task), missing, num_workers):
            progress(done)
    keep(directory, map(read_part, files.values()))
    shutil.rmtree(parts, ignore_errors=True)


def _measure_chunk(task: Measure, work: tuple[range, Path]) -> int:
    rows, file = work
    save_part(file, task.rows(rows))
    return len(rows)


def save_part(path: Path, found: dict) -> None:
    """Write what `Measure.rows` found, and whatever else JSON can hold, as .npz."""
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    others = {name: value for name, value in found.items() if name not in arrays}
    save(path, arrays | {"others": np.frombuffer(json.dumps(others).encode(), np.uint8)})


def read_part(path: Path) -> dict:
    """What `save_part` wrote.

    Raises:
        OSError, EOFError, ValueError, KeyError, BadZipFile: it is missing, or isn't whole.
    """
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    found |= json.loads(found.pop("others").tobytes())
    return found | {"complaints": [Complaint(*words) for words in found["complaints"]]}


def keep(directory: Path, parts: Iterable[dict]) -> LengthIndex:
    """Make the index of a file out of what `Measure.rows` found in its chunks; an equal one stays as it is.

    Raises:
        SettingError: the cache can't be written.
    """
    columns, complaints = [], []
    for part in parts:  # one after another: each open file takes a descriptor
        columns.append([part[name] for name in FOUND])
        complaints += part["complaints"]
    arrays = dict(zip(FOUND, map(np.concatenate, zip(*columns, strict=True)), strict=True))
    arrays["media_ends"] = np.cumsum(arrays["num_media"], dtype=np.int64)
    found = LengthIndex.open(directory)
    is_equal = found is not None and list(found.complaints.values()) == complaints
    if not is_equal or not all(np.array_equal(getattr(found, name), arrays[name]) for name in ARRAYS):
        _save(directory, arrays, complaints)
    return LengthIndex.open(directory)


def _save(directory: Path, arrays: dict[str, np.ndarray], complaints: list[Complaint]) -> None:
    """Write the arrays into a new folder; then `current` names it, so that all change at once."""
    folder = directory / f"arrays-{secrets.token_hex(4)}"
    for name in ARRAYS:
        save(folder / f"{name}.npy", arrays[name])
    save(folder / "complaints.json", json.dumps(complaints))
    save(directory / "current", folder.name)
    for old in directory.glob("arrays-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
