"""One pass over the records of a file: tokens, sizes of images, and errors of each record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import DataError, MediaError, RecordError
from ...files import get_cache_dir, text_hash
from ..images.media import ImageFolder, MediaSource, StoreImages, image_size
from ..images.video import probe_video
from ..records.boxes import normalize_boxes
from ..records.opening import RecordSource
from ..records.records import Record, expand_videos, parse_record
from ..text.conversation import Piece, split_pieces
from ..text.templates import Template
from ..text.tokens import TextTokenizer
from .budget import FRAME

FORMAT = "8"  # part of the key; to be raised when counts or files change


class Complaint(NamedTuple):
    """Why a record can't be used, or (`is_warning`) may not mean what it says.

    It has the index of the record in its file, and the fields of a `DataError` but for the place.
    """

    row: int
    reason: str
    problem: str
    remedy: str
    is_warning: bool

    @classmethod
    def of(cls, row: int, error: DataError, is_warning: bool = False) -> "Complaint":
        """The complaint of an error about record `row`."""
        return cls(row, error.reason, error.problem, error.remedy, is_warning)

    def error(self, source: str) -> RecordError:
        """The complaint as an error about the record at `source` (`file:line`)."""
        return RecordError(self.reason, self.problem, self.remedy, source)


@dataclass(frozen=True)
class Measure:
    """Everything that decides the lengths of the records of one file, except for tiles; no tokenizer counts no text."""

    index: RecordSource
    folder: ImageFolder | StoreImages
    template: Template
    tokenizer: TextTokenizer | None
    num_frames: int
    parse: Callable[[object, str], Record] = parse_record

    def key(self) -> str:
        """Hash of all of it."""
        return text_hash(
            FORMAT,
            self.index.fingerprint(),
            repr(self.template),
            self.tokenizer.fingerprint() if self.tokenizer else "",
            str(self.folder.key()),
            str((len(self.index), self.num_frames)),
            self.parse.__qualname__,
        )

    @property
    def directory(self) -> Path:
        """Where what is measured is kept."""
        return get_cache_dir() / self.key()

    def rows(self, rows: Sequence[int], look: Callable[[int, Record], None] = lambda row, record: None) -> dict:
        """Measure records.

        Args:
            look: called with each usable record, its boxes normalized and its videos replaced by frames.

        Returns:
            text_tokens, supervised, num_media: int32 `[r]`; prefix: int32 `[r, 2]`; sizes: int32 `[m, 2]`, one row per
            image or frame; complaints: list of `Complaint`.
        """
        pieces, sizes, complaints = [], [], []
        for row in rows:
            try:
                record, found, _ = self.open(row)
                pieces.append(split_pieces(record, self.template, self.tokenizer) if self.tokenizer else [])
                sizes.append(found)
            except DataError as error:
                complaints.append(Complaint.of(row, error))
                pieces.append([])
                sizes.append([])
            else:
                look(row, record)
        counts = count_pieces(pieces, self.tokenizer)
        return {
            "text_tokens": counts[:, 0],
            "supervised": counts[:, 1],
            "prefix": counts[:, 2:],
            "num_media": np.array([len(each) for each in sizes], np.int32),
            "sizes": np.array([size for each in sizes for size in each], np.int32).reshape(-1, 2),
            "complaints": complaints,
        }

    def open(self, row: int) -> tuple[Record, list[tuple[int, int]], list[MediaSource]]:
        """A record, its boxes normalized and its videos replaced by frames, and size and source of each image.

        Raises:
            RecordError: the record or one of its media can't be used.
        """
        record = self.parse(self.index.parse(row), self.index.source(row))
        sizes, sources, frames = [], [], []
        for medium in record.media:
            try:
                source = self.folder.resolve(medium.name)
                if medium.kind == "video":
                    frames.append(probe_video(source, self.num_frames)[0])
                    found = [FRAME] * frames[-1]
                else:
                    found = [image_size(source)]
            except MediaError as error:
                raise error.in_record(record.source) from None
            sizes += found
            sources += [source] * len(found)
        return normalize_boxes(expand_videos(record, frames), sizes.__getitem__ if sizes else None), sizes, sources


def count_pieces(records: Sequence[Sequence[Piece]], tokenizer: TextTokenizer) -> np.ndarray:
    """Counts of the pieces of each record, int32 `[r, 4]`; each distinct text is tokenized once.

    The columns: tokens outside the images' spans, supervised tokens, tokens and images before the first supervised one.
    """
    texts = list(dict.fromkeys(piece.text for pieces in records for piece in pieces if piece.text is not None))
    lengths = dict(zip(texts, tokenizer.count_batch(texts) if texts else (), strict=True))
    counts = np.zeros((len(records), 4), np.int32)
    for row, pieces in enumerate(records):
        total, supervised, num_media, before = 0, 0, 0, None
        for piece in pieces:
            length = len(piece.ids) if piece.text is None else lengths[piece.text] - piece.skipped
            if piece.supervised:
                before = before or (total, num_media)
                supervised += length
            total += length
            num_media += piece.medium is not None
        counts[row] = total, supervised, *(before or (0, 0))
    return counts
