"""The length of every record before training: exact token counts, image sizes, and errors.

Measured once per file, in parallel, without decoding images. What was found is kept on disk under a hash of everything
that it depends on (the file, the tokenizer, the template, the image folder). A crash loses at most the chunks being
measured, and of several processes that start together one measures while the others wait.

A broken record may have been mended since, so each start measures broken records again, and the whole file where one
has another result. Other records aren't measured again: a worker that finds another length than planned reports it
(`report_change`), and the next start measures the whole file.

Tiles and tokens follow from a tiling and a `TileBudget` (`LengthIndex.lay_out`).
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import numpy as np

from ...files import get_cache_dir, locked, save, writing
from ...processes import map_in_workers
from ..images.tiling import DynamicTiling
from ..records.json_index import stamp_of
from ..text.tokens import single_threaded_tokenizer
from .budget import FRAME, TileBudget, first_limit
from .measure import Complaint, Measure

CHUNK = 2000  # records that a worker measures at a time, and a crash can lose
ARRAYS = ("text_tokens", "supervised", "prefix", "num_media", "sizes")  # by `Measure.rows`
FITS, SHRUNK, TRUNCATED, DROPPED, BROKEN, REJECTED = range(6)
FATES = ("fits", "shrink_tiles", "truncate_text", "too_long", "broken", "rejected")


@dataclass(frozen=True)
class LengthIndex:
    """What was measured of a file."""

    path: Path  # where it is kept
    stamp: tuple[int, ...]  # of that file when it was read, see `stamp_of`
    text_tokens: np.ndarray  # int32 `[R]`, tokens outside the images' spans
    supervised: np.ndarray  # int32 `[R]`
    prefix: np.ndarray  # int32 `[R, 2]`, text tokens and images before the first supervised token
    num_media: np.ndarray  # int32 `[R]`, images and frames of each record
    sizes: np.ndarray  # int32 `[M, 2]`, width and height of each of them, from its header
    complaints: dict[int, Complaint]  # row -> why the record can't be used

    def __len__(self) -> int:
        return len(self.text_tokens)

    @classmethod
    def open(cls, directory: Path) -> "LengthIndex | None":
        """What `keep` wrote; None without it."""
        path = directory / "lengths.npz"
        found = read_part(path)
        if found is None:
            return None
        complaints = {each.row: each for each in found["complaints"]}
        return cls(path, stamp_of(path), *(found[name] for name in ARRAYS), complaints)

    @cached_property
    def media_ends(self) -> np.ndarray:
        """Where the sizes of each record end, int64 `[R]`."""
        return np.cumsum(self.num_media, dtype=np.int64)

    def holds(self, task: Measure) -> bool:
        """Whether every broken record still is, for the same reason."""
        with single_threaded_tokenizer():
            return all(
                [each.reason for each in task.rows([complaint.row])["complaints"]] == [complaint.reason]
                for complaint in self.complaints.values()
            )

    def lay_out(self, tiling: DynamicTiling, budget: TileBudget) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What becomes of each record under a budget.

        Returns:
            tokens, tiles: int32 `[R]`, 0 for records that are left out.
            fates: uint8 `[R]`, indices into `FATES`; from `DROPPED` on a record is left out.
        """
        num = len(self)
        rows, is_frame = np.repeat(np.arange(num), self.num_media), (self.sizes == FRAME).all(1)
        images = np.bincount(rows[~is_frame], minlength=num)
        shares = [first_limit(tiling.max_tiles, count) for count in range(images.max(initial=0) + 1)]
        limits = np.where(is_frame, 1, np.array(shares)[images[rows]])
        tiles = np.bincount(rows, _count_tiles(self.sizes, limits, tiling, budget), minlength=num).astype(np.int32)
        tokens = (self.text_tokens + tiles * budget.tokens_per_tile + 2 * self.num_media).astype(np.int32)
        fates = np.full(num, FITS, np.uint8)
        fates[list(self.complaints)] = BROKEN
        for row in np.flatnonzero((tokens > budget.max_length) & (fates == FITS)):
            tokens[row], tiles[row], fates[row] = self._fit(int(row), tiling, budget)
        tokens[fates >= DROPPED] = tiles[fates >= DROPPED] = 0
        return tokens, tiles, fates

    def _fit(self, row: int, tiling: DynamicTiling, budget: TileBudget) -> tuple[int, int, int]:
        """Tokens, tiles and fate of a record that is too long, as the worker will find them."""
        last, text = int(self.media_ends[row]), int(self.text_tokens[row])
        sizes = [tuple(map(int, size)) for size in self.sizes[last - int(self.num_media[row]) : last]]
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


def report_change(path: Path, stamp: tuple[int, ...]) -> None:
    """Let the next start measure a whole file again, unless its `LengthIndex` of this path and stamp was replaced.

    Raises:
        SettingError: the cache can't be written.
    """
    with writing(path):
        if path.exists() and stamp_of(path) == stamp:
            path.unlink(missing_ok=True)


def measure(
    task: Measure, *, num_workers: int | None = None, progress: Callable[[int], None] = lambda done: None
) -> LengthIndex:
    """The lengths of a file, from the cache or measured now, in processes (default: one for each core; 0: in this one).

    Args:
        progress: called with the number of records measured since the last call.
    """
    directory = get_cache_dir() / task.key()
    found = LengthIndex.open(directory)
    if found is None or not found.holds(task):
        with locked(directory.with_suffix(".lock")):
            build = partial(_build, task, directory, num_workers, progress)
            found = LengthIndex.open(directory) or build()  # another process may have measured meanwhile
            found = found if found.holds(task) else build()  # chunks may be those of an earlier start that was killed
    return found


def _build(task: Measure, directory: Path, num_workers: int | None, progress: Callable[[int], None]) -> LengthIndex:
    """Measure the chunks that an earlier start hasn't kept, and join all."""
    parts = []
    for part in kept_parts(directory / "parts", len(task.index), CHUNK, task.rows, num_workers):
        parts.append(part)
        progress(len(part["num_media"]))
    found = keep(directory, parts)
    shutil.rmtree(directory / "parts", ignore_errors=True)
    return found


def kept_parts(
    folder: Path, total: int, chunk: int, make: Callable, num_workers: int | None, holds: Callable = bool
) -> Iterator[dict]:
    """What `make` finds of each `chunk` of `total` rows, in order: kept in `folder` by an earlier start, or made now.

    Args:
        make: takes a range of rows; what it returns is kept unless a value of its `stamps`, if there are any, is None.
        holds: whether something kept is still true.
    """
    chunks = [range(first, min(first + chunk, total)) for first in range(0, max(total, 1), chunk)]
    with single_threaded_tokenizer():
        yield from map_in_workers(partial(_part, folder, make, holds), chunks, num_workers)


def _part(folder: Path, make: Callable, holds: Callable, rows: range) -> dict:
    path = folder / f"{rows.start}.npz"
    found = read_part(path)
    if found is None or not holds(found):
        found = make(rows)
        if None not in found.get("stamps", {}).values():
            save_part(path, found)
    return found


def save_part(path: Path, found: dict) -> None:
    """Write what `Measure.rows` found, and whatever else JSON can hold, as .npz."""
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    others = {name: value for name, value in found.items() if name not in arrays}
    save(path, arrays | {"others": np.frombuffer(json.dumps(others).encode(), np.uint8)})


def read_part(path: Path) -> dict | None:
    """What `save_part` wrote; None where it is missing, or cut off by a power failure."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        found |= json.loads(found.pop("others").tobytes())
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return found | {"complaints": [Complaint(*words) for words in found["complaints"]]}


def keep(directory: Path, parts: Iterable[dict]) -> LengthIndex:
    """Make the index of a file out of what `Measure.rows` found in its chunks; an equal one stays as it is.

    Raises:
        SettingError: the cache can't be written.
    """
    parts, path = list(parts), directory / "lengths.npz"
    whole = {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}
    whole["complaints"] = list(chain.from_iterable(part["complaints"] for part in parts))
    found = read_part(path)
    is_equal = found is not None and found["complaints"] == whole["complaints"]
    if not is_equal or not all(np.array_equal(found[name], whole[name]) for name in ARRAYS):
        save_part(path, whole)
    return LengthIndex.open(directory)
