"""Looks at records and their images in the pass that measures their lengths, and keeps what was found.

The parts of a file lie beside its lengths, each with the state of its image files (size, times and inode), so that a
check that was killed goes on where it stopped, and a second one opens only what has changed, and what was unusable.
What is kept are hashes that find copies:

    records   one row per usable record: hashes of its text, with and without its images
    images    one row per image (of a video its first frame): size, hashes of name and pixels, and its look
"""

import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import PIL
import xxhash
from PIL import Image

from ..datasets.images.media import Blob, MediaSource, image_size, load_image
from ..datasets.images.video import load_frames
from ..datasets.plan.lengths import kept_parts
from ..datasets.plan.measure import Complaint, Measure
from ..datasets.records.records import Record
from ..errors import MediaError

FORMAT = "6"  # of the parts; to be raised when other facts are kept
CHUNK = 128  # records that a worker takes at a time, and a crash can lose
REDUCED = 240  # pixels that both sides of a reduced image keep; with fewer, fewer scaled copies are found
RECORD = np.dtype([("row", "i4"), ("text", "u8"), ("whole", "u8")])
IMAGE = np.dtype(
    [(name, "i4") for name in ("row", "width", "height")] + [("name", "u8"), ("pixels", "u8"), ("look", "u8", 2)]
)
SIDE = 8  # a look compares the neighbors among 9 x 9 gray values


@dataclass
class Look:
    """Decodes the images of usable records, and takes down their facts."""

    task: Measure
    records: list[tuple] = field(default_factory=list)  # rows of the tables
    images: list[tuple] = field(default_factory=list)
    seen: list[Complaint] = field(default_factory=list)  # about images that can't be decoded, and warnings
    # path -> state of each image file; None where an image isn't a file, whose state nobody knows
    stamps: dict[str, str | None] = field(default_factory=dict)

    def __call__(self, row: int, record: Record) -> None:
        """Look at a record as `Measure.rows` gives it."""
        try:
            images = self._images(row, record)
        except MediaError as error:
            self.seen.append(Complaint.of(row, error.in_record(record.source)))
            return
        self.seen += [Complaint.of(row, each, is_warning=True) for each in record.warnings]
        text = "\n".join(normalize(turn.text) for turn in record.turns)
        whole = text + "".join(str(image[4]) for image in images)
        self.records.append((row, hash_text(text), hash_text(whole)))
        self.images += images

    def _images(self, row: int, record: Record) -> list[tuple]:
        """The rows of a record's images; a video gives its first frame."""
        images, videos = [], set()
        for medium in record.media:
            if medium.name in videos:
                continue
            path, in_record = self.task.folder.resolve(medium.name), isinstance(medium.name, Blob)
            state = stamp(path) if isinstance(path, str) else None
            if not in_record:
                self.stamps[str(path)] = state
            if medium.kind == "frame":
                videos.add(medium.name)
                frame = load_frames(path, self.task.num_frames)[0]
                facts = look_at(frame, frame.size, None)
            else:
                facts = _look_at(path) if state is None else _look_at_file(path, state)
            name = f"{str(path)} {row if in_record else ''}"  # names inside of records are alike
            images.append((row, *facts[:2], hash_text(name), *facts[2:]))
        return images


def _look_at(source: MediaSource) -> tuple:
    content = source.data if isinstance(source, Blob) else Path(source).read_bytes()
    return look_at(load_image(source, REDUCED), image_size(source), content)


@lru_cache(maxsize=50_000)  # a file that many records name is decoded once; 15 MB a process
def _look_at_file(path: str, state: str) -> tuple:
    return _look_at(path)


def stamp(path: str) -> str:
    """The state of a file, or of a folder of frames and all that lies in it; '' where it isn't there."""
    try:
        state = os.stat(path)
        inside = map(stamp, sorted(entry.path for entry in os.scandir(path)) if stat.S_ISDIR(state.st_mode) else ())
        return str([state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, *inside])
    except OSError:
        return ""


def open_rows(task: Measure, rows: Sequence[int]) -> dict:
    """What `Measure.rows` finds, with what `Look` has taken down of the same records."""
    found = task.rows(rows, look := Look(task))
    tables = {"records": np.array(look.records, RECORD), "images": np.array(look.images, IMAGE)}
    return found | tables | {"seen": look.seen, "stamps": look.stamps}


def open_file(task: Measure, directory: Path, num_workers: int | None) -> Iterator[dict]:
    """What `open_rows` finds of a file, part by part in order: kept by an earlier check, else opened now and kept.

    Args:
        directory: of the file's lengths.
    """
    folder, total = directory / f"opened-{FORMAT}-{PIL.__version__}", len(task.index)
    return kept_parts(folder, total, CHUNK, partial(open_rows, task), num_workers, partial(_holds, task))


def _holds(task: Measure, found: dict) -> bool:
    """Whether no image file has changed since an earlier check, and what was unusable still is."""
    if any(stamp(name) != state for name, state in found["stamps"].items()):
        return False
    found["seen"] = [Complaint(*words) for words in found["seen"]]
    return _unusable(open_rows(task, [each.row for each in _unusable(found)])) == _unusable(found)


def _unusable(found: dict) -> list[Complaint]:
    return [each for each in sorted(found["complaints"] + found["seen"]) if not each.is_warning]


def hash_text(text: str) -> int:
    """A hash of 64 bits."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def normalize(text: str) -> str:
    """A text as copies are compared: compatibility forms, case, white space and final punctuation don't count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".。!！ ")


def look_at(image: Image.Image, size: tuple[int, int], content: bytes | None) -> tuple:
    """Width, height, hash of the pixels and look of an RGB image.

    A look is a dHash in both directions: where gray values rise to the right, and downwards. Other compression,
    brightness and scale change few of its 2 x 64 bits.

    Args:
        size: of the whole image, where this is a reduced one.
        content: what decides the pixels of the whole image; None: this image does.
    """
    gray = np.asarray(image.convert("L").resize((SIDE + 1, SIDE + 1), Image.Resampling.BOX), np.int16)
    rises = gray[:SIDE, 1:] > gray[:SIDE, :-1], gray[1:, :SIDE] > gray[:-1, :SIDE]
    look = tuple(int(np.packbits(rise).view(np.uint64)[0]) for rise in rises)
    content = repr(image.size).encode() + image.tobytes() if content is None else content
    return *size, xxhash.xxh3_64_intdigest(content), look
