"""One pass over the records of a file: tokens, sizes of images, and errors of each record."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..cache import text_hash
from ..errors import DataError, MediaError
from ..images.media import Blob, ImageFolder, image_size
from ..images.stored import StoredImage, StoreImages
from ..images.video import expand_videos, probe_video
from ..records.boxes import normalize_boxes
from ..records.opening import RecordSource
from ..records.records import Record, parse_record
from ..stores import Store
from ..text.conversation import Piece, split_pieces
from ..text.templates import Template
from ..text.tokens import TextTokenizer, no_garbage_collection
from .budget import FRAME
from .complaints import LINK, STORED, Complaint, stamp_files

FORMAT = "5"  # part of the key; to be raised when counts change


@dataclass(frozen=True)
class Measure:
    """Everything that decides the lengths of the records of one file, except for tiles."""

    index: RecordSource
    folder: ImageFolder | StoreImages
    template: Template
    tokenizer: TextTokenizer
    num_frames: int
    max_pixels: int
    parse: Callable[[object, str], Record] = parse_record

    def key(self, cache_dir: str) -> str:
        """Hash of all of it."""
        return text_hash(*self.facts(cache_dir).values())

    def facts(self, cache_dir: str) -> dict[str, str]:
        """All of it by name, as texts or hashes; the order is part of the key."""
        own = {"kind of record": self.parse.__qualname__} if self.parse is not parse_record else {}
        return {
            "version of the measuring": FORMAT,
            "content of the data": self.index.fingerprint(),
            "template": repr(self.template),
            "tokenizer": self.tokenizer.fingerprint(),
            "image folder": str(self.folder.key()),
            "number of records, num_frames or max_pixels": str((len(self.index), self.num_frames, self.max_pixels)),
            **own,
        }

    def rows(self, first: int, last: int) -> dict:
        """Measure records first:last.

        Returns:
            text_tokens, supervised, num_turns, num_media: int32 `[r]`; prefix: int32 `[r, 2]`; sizes: int32 `[m, 2]`,
            one row per image or frame; complaints: list of `Complaint`.
        """
        rows = _Rows(first, last)
        with no_garbage_collection():
            for row in range(first, last):
                try:
                    self._measure_row(row, rows, [])
                except DataError:
                    self._complain(row, rows)
            return rows.count(self.tokenizer)

    @property
    def store(self) -> Store | None:
        """The store of the image folder, where it has one."""
        return getattr(self.folder, "store", None)

    def _complain(self, row: int, rows: "_Rows") -> None:
        """Measure a failed record twice more: for the paths of its media and, once they are stamped, for the error."""
        paths: list[str] = []
        with contextlib.suppress(DataError):
            self._measure_row(row, _Rows(row, row + 1), paths)
        files = stamp_files(paths, self.store)
        try:
            self._measure_row(row, rows, [])
        except DataError as error:
            rows.complaints.append(Complaint.of(row, error, files))

    def _measure_row(self, row: int, rows: "_Rows", paths: list[str]) -> None:
        record, sizes = self._open(row, paths)
        rows.add(row, split_pieces(record, self.template, self.tokenizer), sizes, len(record.turns))

    def _open(self, row: int, paths: list[str]) -> tuple[Record, list[tuple[int, int]]]:
        """A record with the sizes of its media; `paths` collects arguments of `stamp_files`."""
        source = self.index.source(row)
        record = self.parse(self.index.parse(row), source)
        if not record.media:
            return normalize_boxes(record), []
        sizes, frames = [], []
        for medium in record.media:
            try:
                path = self.folder.resolve(medium.name)
                if isinstance(path, StoredImage):
                    paths.append(STORED + path.key)
                elif not isinstance(path, Blob):  # the key of the lengths changes with archives and tables
                    paths.append(path)
                if medium.kind == "video":
                    number, _ = probe_video(path, self.num_frames, self.max_pixels)
                    frames.append(number)
                    sizes += [FRAME] * number
                else:
                    sizes.append(image_size(path, self.max_pixels))
            except MediaError as error:
                if error.reason == "image_outside":
                    paths.append(LINK + os.path.join(self.folder.folder, medium.name))
                raise error.in_record(record.source) from None
        return normalize_boxes(expand_videos(record, frames), sizes.__getitem__), sizes


class _Rows:
    """Collects the pieces of many records, to count each distinct text once and to sum with NumPy."""

    def __init__(self, first: int, last: int):
        self.first, self.num = first, last - first
        self.texts: dict[str, int] = {}  # text -> its index
        self.codes: list[int] = []  # of each piece: index of its text, or -1 - number of its ids
        self.skipped: list[int] = []  # of each piece: ids of its text that are cut off
        self.supervised: list[bool] = []
        self.media: list[bool] = []
        self.rows: list[tuple[int, int, int, int]] = []  # row, number of pieces up to its end, turns, media
        self.sizes: list[tuple[int, int]] = []
        self.complaints: list[Complaint] = []

    def add(self, row: int, pieces: list[Piece], sizes: list[tuple[int, int]], num_turns: int) -> None:
        texts, codes, supervised, media = self.texts, self.codes, self.supervised, self.media
        each_text, each_ids, learned, medium, _, skipped = zip(*pieces, strict=True)
        codes += [
            -1 - len(ids) if text is None else texts.setdefault(text, len(texts))
            for text, ids in zip(each_text, each_ids, strict=True)
        ]
        self.skipped += skipped
        supervised += learned
        media += [number is not None for number in medium] if sizes else [False] * len(pieces)
        self.rows.append((row, len(codes), num_turns, len(sizes)))
        self.sizes += sizes

    def count(self, tokenizer: TextTokenizer) -> dict:
        """What `Measure.rows` returns."""
        counts = np.zeros((6, self.num), np.int32)
        if self.rows:
            rows, ends, turns, num_media = np.array(self.rows).T
            starts = np.concatenate([[0], ends[:-1]])
            codes, learned = np.array(self.codes), np.array(self.supervised)
            of_texts = np.array([len(ids) for ids in tokenizer.encode_batch(list(self.texts))] or [0])
            lengths = np.where(codes < 0, -1 - codes, of_texts[np.maximum(codes, 0)]) - self.skipped
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
