"""The length of every record before training: exact token counts, image sizes, and errors.

Measured once per file, in parallel, without decoding images. What was found is kept on disk under a hash of everything
that it depends on (the file, the tokenizer, the template, the image folder). A crash loses at most the chunks being
measured, and of several processes that start together one measures while the others wait.

A broken record may have been mended since, so each start measures broken records again, and the whole file where one
has another result. Other records aren't measured again: a worker that finds another length than planned removes what
is kept, and the next start measures the whole file.

Tiles and tokens follow from a tiling and a `TileBudget` (`LengthIndex.lay_out`).
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from ...files import locked, save
from ...processes import map_in_workers, progress_bar
from ..images.tiling import DynamicTiling
from .budget import BROKEN, DROPPED, FITS, FRAME, TileBudget, first_limit
from .measure import Complaint, Measure

KEPT = "lengths.npz"  # the file of a `LengthIndex`
PROGRESS_FROM = 5000  # records; fewer are measured in no time
CHUNK = 2000  # records that a worker measures at a time, and a crash can lose
ARRAYS = ("text_tokens", "supervised", "prefix", "num_media", "sizes")  # by `Measure.rows`


@dataclass(frozen=True)
class LengthIndex:
    """What was measured of a file."""

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
        found = read_part(directory / KEPT)
        if found is None:
            return None
        return cls(*(found[name] for name in ARRAYS), {each.row: each for each in found["complaints"]})

    def holds(self, task: Measure) -> bool:
        """Whether every broken record still is, for the same reason."""
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
        num, ends = len(self), np.cumsum(self.num_media, dtype=np.int64)  # where the sizes of each record end
        rows, is_frame = np.repeat(np.arange(num), self.num_media), (self.sizes == FRAME).all(1)
        images = np.bincount(rows[~is_frame], minlength=num)
        shares = [first_limit(tiling.max_tiles, count) for count in range(images.max(initial=0) + 1)]
        limits = np.where(is_frame, 1, np.array(shares)[images[rows]])
        tiles = np.bincount(rows, _count_tiles(self.sizes, limits, tiling, budget), minlength=num).astype(np.int32)
        tokens = (self.text_tokens + tiles * budget.tokens_per_tile + 2 * self.num_media).astype(np.int32)
        fates = np.full(num, FITS, np.uint8)
        fates[list(self.complaints)] = BROKEN
        for row in np.flatnonzero((tokens > budget.max_length) & (fates == FITS)):
            sizes = list(map(tuple, self.sizes[ends[row] - self.num_media[row] : ends[row]].tolist()))
            text = int(self.text_tokens[row])
            _, counts, fates[row] = budget.fit(tiling, sizes, text, self.prefix[row].tolist())
            tiles[row] = sum(counts)  # of a text that is cut off upper bounds: a span at the cut is removed whole
            tokens[row] = min(text + budget.tokens(counts), budget.max_length)
        tokens[fates >= DROPPED] = tiles[fates >= DROPPED] = 0
        return tokens, tiles, fates


def _count_tiles(sizes: np.ndarray, limits: np.ndarray, tiling: DynamicTiling, budget: TileBudget) -> np.ndarray:
    """Tiles of each image, int64 `[m]`; each size and limit is counted once."""
    width, height = sizes.T.astype(np.int64)
    _, codes = np.unique(width << 32 | height, return_inverse=True)
    codes = codes * (limits.max(initial=0) + 1) + limits  # one number sorts much faster than a row of three
    _, places, inverse = np.unique(codes, return_index=True, return_inverse=True)
    each = [budget.count(tiling, (width[place], height[place]), int(limits[place])) for place in places]
    return np.array(each, np.int64)[inverse]


def measure(task: Measure, *, num_workers: int | None = None) -> LengthIndex:
    """The lengths of a file, from the cache, or measured now with a progress bar.

    Args:
        num_workers: processes; default: one for each core; 0 measures in this process.

    Raises:
        SettingError: the cache can't be written.
        SourceError: a store doesn't answer, or the file has changed.
    """
    directory = task.directory
    found = LengthIndex.open(directory)
    if found is None or not found.holds(task):
        with locked(directory.with_suffix(".lock")):
            build = partial(_build, task, directory, num_workers)
            found = LengthIndex.open(directory) or build()  # another process may have measured meanwhile
            found = found if found.holds(task) else build()  # chunks may be those of an earlier start that was killed
    return found


def _build(task: Measure, directory: Path, num_workers: int | None) -> LengthIndex:
    """Measure the chunks that an earlier start hasn't kept, and join all."""
    total, parts = len(task.index), []
    bar = {"total": total, "unit": "record", "desc": "measuring lengths", "disable": total < PROGRESS_FROM}
    with progress_bar(**bar) as shown:
        for part in kept_parts(directory / "parts", total, CHUNK, task.rows, num_workers):
            parts.append(part)
            shown.update(len(part["num_media"]))
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
    """Write the index of a file, made of what `Measure.rows` found in its chunks, and return it.

    Raises:
        SettingError: the cache can't be written.
    """
    parts = list(parts)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}
    whole["complaints"] = list(chain.from_iterable(part["complaints"] for part in parts))
    save_part(directory / KEPT, whole)
    return LengthIndex.open(directory)
