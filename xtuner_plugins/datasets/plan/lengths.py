"""The length of every record before training: exact token counts, image sizes, and errors.

Measured once per file, in parallel, without decoding images. The arrays are kept on disk under a hash of everything
they depend on (the file, the tokenizer, the template, the image folder) and are memory-mapped. A crash loses at most
the chunks being measured, and of several processes that start together one measures while the others wait.

A broken record may have been mended since, so each start compares the files of broken records (`complaints`) and
measures a record again where they have changed. Other records aren't compared: a worker that finds another length than
planned reports it (`report_change`), and the next start measures the whole file again.

    text_tokens [R]   tokens outside the images' spans
    sizes [M, 2]      width and height of each image, from its header; record r has media_ends[r-1]:media_ends[r]
    prefix [R, 2]     text tokens and images before the first supervised token

Tiles and tokens follow from a tiling and a `TileBudget` (`lay_out`), and are kept beside the arrays.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...processes import die_with_parent, num_cores
from ..cache import locked, open_array, save, text_hash, writing
from ..images.tiling import DynamicTiling
from ..stores import Store
from ..text.tokens import single_threaded_tokenizer
from .budget import FRAME, TileBudget, first_limit
from .complaints import Complaint, parse_complaints, write_complaints
from .measure import Measure

BLOCK = 1 << 20  # records whose tiles are counted at a time
CHUNK = 2000  # records that a worker measures at a time, and a crash can lose
STORE_THREADS = 16  # that ask a store for versions
PER_ROW = ("text_tokens", "supervised", "num_turns", "prefix")
ARRAYS = (*PER_ROW, "reasons", "media_ends", "sizes")


@dataclass(frozen=True)
class LengthIndex:
    """The measured file (see the module); arrays may be memory-mapped.

    Attributes:
        text_tokens, supervised, num_turns: int32 `[R]`.
        prefix: int32 `[R, 2]`.
        reasons: uint8 `[R]`: 0 for a usable record, else 1 + the index in `reason_names`.
        media_ends: int64 `[R]`.
        sizes: int32 `[M, 2]`.
        complaints: row -> `Complaint` of each unusable record.
    """

    directory: Path
    text_tokens: np.ndarray
    supervised: np.ndarray
    num_turns: np.ndarray
    prefix: np.ndarray
    reasons: np.ndarray
    media_ends: np.ndarray
    sizes: np.ndarray
    reason_names: list[str]

    def __len__(self) -> int:
        return len(self.text_tokens)

    @classmethod
    def open(cls, directory: Path) -> "LengthIndex | None":
        """The arrays that `meta.json` names; None without that file."""
        for _ in range(3):  # another process may replace them meanwhile
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                meta = json.loads((directory / "meta.json").read_text())
                arrays = [open_array(directory / meta["arrays"] / f"{name}.npy") for name in ARRAYS]
                return cls(directory / meta["arrays"], *arrays, meta["reasons"])
        return None

    @cached_property
    def complaints(self) -> dict[int, Complaint]:
        text = (self.directory / "complaints.jsonl").read_text(encoding="utf-8")
        return {complaint.row: complaint for complaint in parse_complaints(text)}

    def outdated(self, store: Store | None = None) -> list[int]:
        """Rows of the complaints that may no longer hold.

        Args:
            store: of the image folder, where it has one; it is asked for the version of each object.
        """
        rows, complaints = list(self.complaints), self.complaints.values()
        if store is None:
            held = [complaint.holds() for complaint in complaints]
        else:
            with ThreadPoolExecutor(STORE_THREADS) as pool:
                held = list(pool.map(lambda complaint: complaint.holds(store), complaints))
        return [row for row, holds in zip(rows, held, strict=True) if not holds]

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
        counts: dict[tuple[int, int, int], int] = {}  # tiles of an image by its size and limit
        blocks = [
            self._lay_out_rows(first, min(first + BLOCK, len(self)), tiling, budget, counts)
            for first in range(0, max(len(self), 1), BLOCK)
        ]
        return tuple(map(np.concatenate, zip(*blocks, strict=True)))

    def _lay_out_rows(
        self, first: int, last: int, tiling: DynamicTiling, budget: TileBudget, counts: dict[tuple[int, int, int], int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`lay_out` of some records, so that the memory it takes doesn't grow with the file."""
        num = last - first
        before = int(self.media_ends[first - 1]) if first else 0
        num_media = np.diff(self.media_ends[first:last], prepend=before)
        sizes = self.sizes[before : before + int(num_media.sum())]
        rows = np.repeat(np.arange(num), num_media)
        is_frame = (sizes == FRAME).all(1)
        images = np.bincount(rows[~is_frame], minlength=num)
        shares = [first_limit(tiling.max_tiles, num, budget.sharing) for num in range(images.max(initial=0) + 1)]
        limits = np.where(is_frame, 1, np.array(shares)[images[rows]])
        tiles = np.bincount(rows, _count_tiles(sizes, limits, tiling, budget, counts), minlength=num).astype(np.int32)
        tokens = (self.text_tokens[first:last] + tiles * budget.tokens_per_tile + 2 * num_media).astype(np.int32)
        fates = np.where(self.reasons[first:last] > 0, BROKEN, FITS).astype(np.uint8)
        for row in np.flatnonzero((tokens > budget.max_length) & (fates == FITS)):
            tokens[row], tiles[row], fates[row] = self._fit(first + int(row), tiling, budget)
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
        if "truncate_text" in budget.steps and before_text + budget.tokens(counts[:before_media]) < budget.max_length:
            return budget.max_length, sum(counts), TRUNCATED  # upper bounds: a span at the cut is removed whole
        return 0, 0, DROPPED


def _count_tiles(
    sizes: np.ndarray,
    limits: np.ndarray,
    tiling: DynamicTiling,
    budget: TileBudget,
    counts: dict[tuple[int, int, int], int],
) -> np.ndarray:
    """Tiles of each image, int64 `[m]`; `counts` holds those of the sizes and limits met so far."""
    width, height = sizes.T.astype(np.int64)
    _, codes = np.unique(width << 32 | height, return_inverse=True)
    codes = codes.reshape(-1) * (limits.max(initial=0) + 1) + limits  # one number sorts much faster than a row of three
    _, places, inverse = np.unique(codes, return_index=True, return_inverse=True)
    each = np.zeros(len(places), np.int64)
    for number, place in enumerate(places):
        key = int(width[place]), int(height[place]), int(limits[place])
        if key not in counts:
            counts[key] = budget.count(tiling, key[:2], key[2])
        each[number] = counts[key]
    return each[inverse.reshape(-1)]


FITS, SHRUNK, TRUNCATED, DROPPED, BROKEN, REJECTED = range(6)
FATES = ("fits", "shrink_tiles", "truncate_text", "too_long", "broken", "rejected")


def report_change(directory: Path) -> None:
    """Let the next start measure a whole file again, because the length of a record has changed.

    Args:
        directory: of the outdated `LengthIndex`; where it has already been replaced, nothing happens.

    Raises:
        SettingError: the cache can't be written.
    """
    meta = directory.parent / "meta.json"
    current = LengthIndex.open(meta.parent)
    if current is not None and current.directory == directory:
        with writing(meta):
            meta.unlink(missing_ok=True)


def measure(
    task: Measure,
    cache_dir: str,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> LengthIndex:
    """The lengths of a file, from the cache or measured now.

    Args:
        num_workers: processes; default: one for each core that this process may use; 0 measures in this process.
        progress: called with the number of records measured since the last call.
    """
    directory = Path(cache_dir) / task.key(cache_dir)
    found = LengthIndex.open(directory)
    if found is None or found.outdated(task.store):
        with locked(directory.with_suffix(".lock")):
            found = LengthIndex.open(directory)  # another process may have measured meanwhile
            if found is None:
                _build(task, directory, num_workers, progress)
                found = LengthIndex.open(directory)
            rows = found.outdated(task.store)  # also after an earlier start that was killed half-way
            if len(rows) > CHUNK:
                _build(task, directory, num_workers, progress)
            elif rows:
                _measure_again(task, found, rows)
            found = LengthIndex.open(directory)
    return found


def _measure_again(task: Measure, found: LengthIndex, rows: list[int]) -> None:
    """Measure records that were broken, and may have been mended, and put them into the index."""
    with single_threaded_tokenizer():
        parts = [task.rows(row, row + 1) for row in rows]
    arrays = {name: np.array(getattr(found, name)) for name in PER_ROW}
    for row, part in zip(rows, parts, strict=True):
        for name in PER_ROW:
            arrays[name][row] = part[name][0]
    num_media = np.diff(found.media_ends, prepend=0)
    num_media[rows] = added = [int(part["num_media"][0]) for part in parts]  # a broken record has none
    before = np.repeat(found.media_ends[rows], added)
    arrays["sizes"] = np.insert(found.sizes, before, np.concatenate([part["sizes"] for part in parts]), axis=0)
    complaints = [complaint for row, complaint in found.complaints.items() if row not in set(rows)]
    complaints += [complaint for part in parts for complaint in part["complaints"]]
    _save(found.directory.parent, arrays | {"num_media": num_media}, complaints)


def _build(task: Measure, directory: Path, num_workers: int | None, progress: Callable[[int], None]) -> None:
    parts, chunks = directory / "parts", chunks_of(task)
    measure_chunks(task, parts, chunks, num_workers, progress)
    merge_parts(directory, [part_path(parts, first) for first, _ in chunks])
    shutil.rmtree(parts, ignore_errors=True)


def chunks_of(task: Measure) -> list[tuple[int, int]]:
    """The ranges of records (first, end) that are measured at a time."""
    total = len(task.index)
    return [(first, min(first + CHUNK, total)) for first in range(0, total, CHUNK)]


def part_path(parts: Path, first: int) -> Path:
    """The file of the chunk that begins with record `first`."""
    return parts / f"{first}.npz"


def measure_chunks(
    task: Measure,
    parts: Path,
    chunks: list[tuple[int, int]],
    num_workers: int | None,
    progress: Callable[[int], None],
) -> None:
    """Measure the chunks that aren't in the folder `parts` yet; arguments as `measure`."""
    missing = [chunk for chunk in chunks if not part_path(parts, chunk[0]).exists()]
    progress(sum(last - first for first, last in chunks) - sum(last - first for first, last in missing))
    num_workers = min(num_cores() if num_workers is None else num_workers, len(missing))
    if num_workers <= 1:
        with single_threaded_tokenizer():
            for first, last in missing:
                save_part(parts, first, task.rows(first, last))
                progress(last - first)
    else:
        with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(task, parts)) as pool:
            try:
                for job in as_completed([pool.submit(_work, first, last) for first, last in missing]):
                    progress(job.result())
            except BaseException:  # such as a store that doesn't answer: nobody waits for the other chunks
                pool.shutdown(cancel_futures=True)
                raise


_task: tuple[Measure, Path] | None = None  # of a worker process


def _start_worker(task: Measure, parts: Path) -> None:
    global _task
    die_with_parent()
    _task = (task, parts)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one process per core already


def _work(first: int, last: int) -> int:
    task, parts = _task
    save_part(parts, first, task.rows(first, last))
    return last - first


def save_part(parts: Path, first: int, found: dict) -> None:
    """Keep what `Measure.rows` has found from record `first` on."""
    complaints = np.frombuffer(write_complaints(found.pop("complaints")).encode(), np.uint8)
    save(part_path(parts, first), {**found, "complaints": complaints})


def merge_parts(directory: Path, files: list[Path]) -> None:
    """Make the index of a file from those of its chunks, in the order of its records."""
    names, columns, complaints = (*PER_ROW, "num_media", "sizes"), [], []
    for file in files:  # one after another: each open file takes a descriptor
        with np.load(file, allow_pickle=False) as part:
            columns.append([part[name] for name in names])
            complaints += parse_complaints(part["complaints"].tobytes().decode())
    joined = {name: np.concatenate(parts) for name, parts in zip(names, zip(*columns, strict=True), strict=True)}
    _save(directory, joined, complaints)


def _save(directory: Path, arrays: dict[str, np.ndarray], complaints: list[Complaint]) -> None:
    """Write arrays and complaints into a new folder; then `meta.json` names it, so that all change at once."""
    reason_names = sorted({complaint.reason for complaint in complaints})
    reasons = np.zeros(len(arrays["text_tokens"]), np.uint8)
    for complaint in complaints:
        reasons[complaint.row] = 1 + reason_names.index(complaint.reason)
    media_ends = np.cumsum(arrays["num_media"], dtype=np.int64)
    folder = directory / f"arrays-{secrets.token_hex(4)}"
    for name in ARRAYS:
        save(folder / f"{name}.npy", (arrays | {"reasons": reasons, "media_ends": media_ends})[name])
    save(folder / "complaints.jsonl", write_complaints(sorted(complaints, key=lambda item: item.row)))
    save(directory / "meta.json", json.dumps({"arrays": folder.name, "reasons": reason_names}))
    for old in directory.glob("arrays-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
