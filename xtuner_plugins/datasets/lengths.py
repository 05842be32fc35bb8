"""How long every record will be, before any is trained on: exact token counts, picture sizes, and what is wrong.

Built once for a file, in parallel, and kept on disk by the content of what it depends on (the file, the tokenizer,
the template, the image folder); read back memory-mapped. A crash loses at most the chunks under way, and of several
processes that start together one builds while the others wait. Nothing here decodes a picture.

    text_tokens [R]   everything but the pictures' spans
    sizes [M, 2]      width and height of each picture, from its header; record r has media_ends[r-1]:media_ends[r]
    prefix [R, 2]     text tokens and pictures before the first supervised token

How many tiles and tokens that makes follows from a `TileBudget` (`lay_out`), and is kept beside it.
"""

import contextlib
import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .boxes import normalise_boxes
from .budget import FRAME, TileBudget
from .cache import content_hash, locked, open_array, save_array, text_hash, write_whole
from .conversation import Piece, split_pieces
from .errors import DataError, MediaError
from .index import OffsetIndex, SequentialReader, parse_json
from .media import ImageFolder, image_size
from .records import Record, parse_record
from .templates import Template
from .token_counts import TokenCounter
from .tokens import TextTokenizer, single_threaded_tokenizer
from .video import expand_videos, probe_video

FORMAT = "1"  # part of the key: raise it when what is counted changes
CHUNK = 2000  # records a worker takes at a time, and what a crash can lose
ARRAYS = ("text_tokens", "supervised", "num_turns", "prefix", "reasons", "media_ends", "sizes")


@dataclass(frozen=True)
class Measure:
    """Everything that decides how long the records of one file are, tiles aside."""

    index: OffsetIndex
    folder: ImageFolder
    template: Template
    tokenizer: TextTokenizer
    num_frames: int
    max_pixels: int

    def key(self, cache_dir: str) -> str:
        """Hash of all of it."""
        folder = "" if self.folder.folder is None else os.path.realpath(self.folder.folder)
        return text_hash(
            FORMAT,
            content_hash(self.index.path, cache_dir),
            repr(self.template),
            self.tokenizer.fingerprint(),
            folder,
            str((self.num_frames, self.max_pixels)),
        )

    def rows(self, first: int, last: int) -> dict:
        """Measure records first:last.

        Returns:
            text_tokens, supervised, num_turns, num_media: int32; prefix: int32 `[r, 2]`; sizes: int32 `[m, 2]`,
            frames one by one; complaints: list of (row, reason, message).
        """
        rows = _Rows(first, last)
        with _no_garbage_collection(), SequentialReader(self.index) as reader:
            for row in range(first, last):
                try:
                    record, sizes = self._open(row, reader)
                    rows.add(row, split_pieces(record, self.template, self.tokenizer), sizes, len(record.turns))
                except DataError as error:
                    rows.complaints.append((row, error.reason, str(error)))
            return rows.count(self._counter)

    @cached_property
    def _counter(self) -> TokenCounter:
        return TokenCounter(self.tokenizer)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_counter"}

    def _open(self, row: int, reader: SequentialReader) -> tuple[Record, list[tuple[int, int]]]:
        source = self.index.source(row)
        record = parse_record(parse_json(reader.read(row), source), source)
        if not record.media:
            return normalise_boxes(record), []
        sizes, frames = [], []
        for medium in record.media:
            try:
                path = self.folder.resolve(medium.name)
                if medium.kind == "video":
                    number, _ = probe_video(path, self.num_frames, self.max_pixels)
                    frames.append(number)
                    sizes += [FRAME] * number
                else:
                    sizes.append(image_size(path, self.max_pixels))
            except MediaError as error:
                raise error.in_record(record.source) from None
        return normalise_boxes(expand_videos(record, frames), sizes.__getitem__), sizes


class _Rows:
    """Collects the pieces of many records, so that each distinct text is counted once and sums are numpy's."""

    def __init__(self, first: int, last: int):
        self.first, self.num = first, last - first
        self.texts: dict[str, int] = {}  # text -> its number
        self.codes: list[int] = []  # of each piece: the number of its text, or -1 - how many ids it has
        self.supervised: list[bool] = []
        self.media: list[bool] = []
        self.rows: list[tuple[int, int, int, int]] = []  # row, pieces up to its end, turns, media
        self.sizes: list[tuple[int, int]] = []
        self.complaints: list[tuple[int, str, str]] = []

    def add(self, row: int, pieces: list[Piece], sizes: list[tuple[int, int]], num_turns: int) -> None:
        texts, codes, supervised, media = self.texts, self.codes, self.supervised, self.media
        each_text, each_ids, learned, medium = zip(*pieces, strict=True)
        codes += [
            -1 - len(ids) if text is None else texts.setdefault(text, len(texts))
            for text, ids in zip(each_text, each_ids, strict=True)
        ]
        supervised += learned
        media += [number is not None for number in medium] if sizes else [False] * len(pieces)
        self.rows.append((row, len(codes), num_turns, len(sizes)))
        self.sizes += sizes

    def count(self, counter: TokenCounter) -> dict:
        """What `Measure.rows` returns."""
        counts = np.zeros((6, self.num), np.int32)
        if self.rows:
            rows, ends, turns, num_media = np.array(self.rows).T
            starts = np.concatenate([[0], ends[:-1]])
            codes, learned = np.array(self.codes), np.array(self.supervised)
            of_texts = np.array(counter.count(list(self.texts)) or [0])
            lengths = np.where(codes < 0, -1 - codes, of_texts[np.maximum(codes, 0)])
            learns = np.flatnonzero(learned)
            answers = learns[np.searchsorted(learns, starts)]  # each record's first supervised piece
            for place, column in enumerate((lengths, lengths * learned)):
                counts[place, rows - self.first] = np.add.reduceat(column, starts)
            counts[2, rows - self.first], counts[3, rows - self.first] = turns, num_media
            for place, column in ((4, lengths), (5, np.array(self.media))):
                before = np.concatenate([[0], np.cumsum(column)])
                counts[place, rows - self.first] = before[answers] - before[starts]
        return {
            "text_tokens": counts[0],
            "supervised": counts[1],
            "num_turns": counts[2],
            "num_media": counts[3],
            "prefix": counts[4:].T,
            "sizes": np.array(self.sizes, np.int32).reshape(-1, 2),
            "complaints": self.complaints,
        }


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of small objects come and go here and none refers back to itself; looking for those that do, through
    everything that is imported, took a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class LengthIndex:
    """The measured file (see the module); arrays may be memory-mapped.

    Attributes:
        text_tokens, supervised, num_turns: int32 `[R]`.
        prefix: int32 `[R, 2]`.
        reasons: uint8 `[R]`: 0 for a usable record, else 1 + its place in `reason_names`.
        media_ends: int64 `[R]`.
        sizes: int32 `[M, 2]`.
        complaints: row -> message of each unusable record.
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

    @cached_property
    def complaints(self) -> dict[int, str]:
        with open(self.directory / "complaints.jsonl", encoding="utf-8") as file:
            return dict(json.loads(line) for line in file)

    @cached_property
    def num_media(self) -> np.ndarray:
        return np.diff(self.media_ends, prepend=0)

    def lay_out(self, budget: TileBudget) -> "Layout":
        """Tokens and tiles of each record under a budget; kept on disk beside the index."""
        paths = [self.directory / f"{name}-{text_hash(repr(budget))}.npy" for name in ("tokens", "tiles", "fates")]
        if not all(path.exists() for path in paths):
            layout = self._lay_out(budget)
            for path, array in zip(paths, (layout.tokens, layout.tiles, layout.fates), strict=True):
                save_array(path, array)
        return Layout(*map(open_array, paths))

    def _lay_out(self, budget: TileBudget) -> "Layout":
        num_media, rule = self.num_media, budget.rule
        rows = np.repeat(np.arange(len(self)), num_media)
        is_frame = (self.sizes == FRAME).all(1)
        pictures = np.bincount(rows[~is_frame], minlength=len(self))
        shared = rule.max_tiles // np.maximum(pictures, 1) if budget.sharing == "equal" else rule.max_tiles
        limits = np.where(is_frame, 1, np.maximum(np.broadcast_to(shared, len(self))[rows], 1))
        distinct, inverse = np.unique(np.column_stack([self.sizes, limits]), axis=0, return_inverse=True)
        counts = np.array([budget.count((width, height), int(limit)) for width, height, limit in distinct], np.int64)
        counts = counts[inverse.reshape(-1)] if len(rows) else np.zeros(0, np.int64)
        tiles = np.bincount(rows, counts, minlength=len(self)).astype(np.int32)
        tokens = (self.text_tokens + tiles * budget.tokens_per_tile + 2 * num_media).astype(np.int32)
        fates = np.where(self.reasons > 0, BROKEN, FITS).astype(np.uint8)
        for row in np.flatnonzero((tokens > budget.max_length) & (fates == FITS)):
            tokens[row], tiles[row], fates[row] = self._fit(int(row), budget)
        tokens[fates >= DROPPED] = tiles[fates >= DROPPED] = 0
        return Layout(tokens, tiles, fates)

    def _fit(self, row: int, budget: TileBudget) -> tuple[int, int, int]:
        """Tokens, tiles and fate of a record that is too long, as the worker will find them."""
        last = int(self.media_ends[row])
        sizes = [tuple(map(int, size)) for size in self.sizes[last - int(self.num_media[row]) : last]]
        text = int(self.text_tokens[row])
        counts = [budget.count(size, limit) for size, limit in zip(sizes, budget.fit(sizes, text), strict=True)]
        total = text + budget.tokens(counts)
        if total <= budget.max_length:
            return total, sum(counts), SHRUNK
        before_text, before_media = map(int, self.prefix[row])
        if "truncate_text" in budget.steps and before_text + budget.tokens(counts[:before_media]) < budget.max_length:
            return budget.max_length, sum(counts), TRUNCATED  # upper bounds: a span at the cut goes as a whole
        return 0, 0, DROPPED


FITS, SHRUNK, TRUNCATED, DROPPED, BROKEN, REJECTED = range(6)
FATES = ("fits", "shrink_tiles", "truncate_text", "too_long", "broken", "rejected")


@dataclass(frozen=True)
class Layout:
    """What becomes of each record under a budget.

    Attributes:
        tokens, tiles: int32 `[R]`, 0 for records that are left out.
        fates: uint8 `[R]`, places in `FATES`; from `DROPPED` on a record is left out.
    """

    tokens: np.ndarray
    tiles: np.ndarray
    fates: np.ndarray


def measure(
    task: Measure,
    cache_dir: str,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> LengthIndex:
    """The lengths of a file, from the cache or counted now.

    Args:
        num_workers: processes; None takes one for each core that this process may use, 0 works in this one.
        progress: called with the number of records counted since the last call.
    """
    directory = Path(cache_dir) / task.key(cache_dir)
    if not (directory / "meta.json").exists():
        with locked(directory.with_suffix(".lock")):
            if not (directory / "meta.json").exists():
                _build(task, directory, num_workers, progress)
    meta = json.loads((directory / "meta.json").read_text())
    return LengthIndex(directory, *(open_array(directory / f"{name}.npy") for name in ARRAYS), meta["reasons"])


def _build(task: Measure, directory: Path, num_workers: int | None, progress: Callable[[int], None]) -> None:
    parts = directory / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    total = len(task.index)
    chunks = [(first, min(first + CHUNK, total)) for first in range(0, total, CHUNK)]
    missing = [chunk for chunk in chunks if not (parts / f"{chunk[0]}.npz").exists()]
    progress(total - sum(last - first for first, last in missing))
    num_workers = min(len(os.sched_getaffinity(0)) if num_workers is None else num_workers, len(missing))
    if num_workers <= 1:
        with single_threaded_tokenizer():
            for first, last in missing:
                _save_part(task, parts, first, last)
                progress(last - first)
    else:
        _ = task._counter  # made once, for the workers to inherit
        with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(task, parts)) as pool:
            for job in as_completed([pool.submit(_work, first, last) for first, last in missing]):
                progress(job.result())
    _merge(directory, parts, chunks)


_task: tuple[Measure, Path] | None = None  # a worker's own


def _start_worker(task: Measure, parts: Path) -> None:
    global _task
    _task = (task, parts)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already


def _work(first: int, last: int) -> int:
    _save_part(*_task, first, last)
    return last - first


def _save_part(task: Measure, parts: Path, first: int, last: int) -> None:
    found = task.rows(first, last)
    complaints = np.frombuffer(json.dumps(found.pop("complaints")).encode(), np.uint8)
    write_whole(parts / f"{first}.npz", lambda target: np.savez(target, complaints=complaints, **found))


def _merge(directory: Path, parts: Path, chunks: list[tuple[int, int]]) -> None:
    loaded = [np.load(parts / f"{first}.npz", allow_pickle=False) for first, _ in chunks]
    joined = {
        name: np.concatenate([part[name] for part in loaded])
        for name in ("text_tokens", "supervised", "num_turns", "num_media", "prefix", "sizes")
    }
    complaints = [tuple(item) for part in loaded for item in json.loads(part["complaints"].tobytes())]
    names = sorted({reason for _, reason, _ in complaints})
    reasons = np.zeros(len(joined["text_tokens"]), np.uint8)
    for row, reason, _ in complaints:
        reasons[row] = 1 + names.index(reason)
    joined["reasons"] = reasons
    joined["media_ends"] = np.cumsum(joined.pop("num_media"), dtype=np.int64)
    for name in ARRAYS:
        save_array(directory / f"{name}.npy", joined[name])
    lines = "".join(json.dumps([row, message]) + "\n" for row, _, message in complaints)
    write_whole(directory / "complaints.jsonl", lambda target: target.write_text(lines, encoding="utf-8"))
    write_whole(directory / "meta.json", lambda target: target.write_text(json.dumps({"reasons": names})))
    shutil.rmtree(parts, ignore_errors=True)
