"""Opens records and their media to look at them: everything that training does, except for cutting tiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from ..cache import get_cache_dir
from ..dataset import MultimodalDataset
from ..errors import DataError, MediaError
from ..images.media import MAX_PIXELS, MediaSource, display_name, load_image
from ..images.routes import TileSource, check_pixels
from ..images.stored import open_images
from ..images.tiling import DynamicTiling, Grid
from ..images.video import load_frames
from ..mixture import raise_together
from ..plan.lengths import FATES, FITS
from ..records.boxes import normalize_boxes
from ..records.opening import folder_of, open_records, stem_of
from ..records.records import Medium, Record, Turn, parse_record
from .looks import ImageFacts, KnownImages, Stamp, look_at, stamp_of

NUM_FRAMES = 8  # per video, the dataset's default


@dataclass(frozen=True)
class SeenImage:
    """A decoded image or video frame.

    Attributes:
        kind: 'image' or 'frame'.
        name: its name in the record, or that of its video, which no other image of the file has.
        path: what messages call it: its file, or that of its video; the name of one inside an archive or a table.
        size: (width, height), upright.
        grid: how training cuts it.
        image: RGB; None where only its facts are asked for.
        facts: of an image, and of the first frame of a video, where they are asked for.
    """

    kind: str
    name: str
    path: str
    size: tuple[int, int]
    grid: Grid
    image: Image.Image | None = None
    facts: ImageFacts | None = None


@dataclass(frozen=True)
class Seen:
    """An opened record: `record` as its file has it, `sample` as training gets it (without tiles)."""

    record: Record
    sample: dict
    images: list[SeenImage]


class UncutMedia:
    """Takes the place of `MultimodalDataset`'s own opening of media: decodes, and cuts no tiles.

    Args:
        known: facts of images that have been decoded; None keeps the images themselves, and no facts.

    Attributes:
        images: what was opened, in reading order.
        stamps: of their files, from before they were opened.
    """

    def __init__(self, num_frames: int, max_pixels: int, known: KnownImages | None = None):
        self.num_frames, self.max_pixels, self.known = num_frames, max_pixels, known
        self.images: list[SeenImage] = []
        self.stamps: list[Stamp] = []

    def __call__(
        self, media: Sequence[Medium], paths: Sequence[MediaSource], tilings: Sequence[DynamicTiling]
    ) -> list[TileSource]:
        """The grids of the media.

        Raises:
            MediaError: one can't be decoded.
        """
        frames: dict[str, list[Image.Image]] = {}
        for medium, path, tiling in zip(media, paths, tilings, strict=True):
            image = facts = None
            if medium.kind == "frame":
                is_first = medium.name not in frames
                if not frames.get(medium.name):
                    self._add(stamp_of(path))
                    frames[medium.name] = load_frames(path, self.num_frames, self.max_pixels)
                image = frames[medium.name].pop(0)
                check_pixels(image, display_name(path))
                if self.known is not None and is_first:
                    facts = look_at(image)
            elif self.known is None:
                image = load_image(path, self.max_pixels)
                check_pixels(image, display_name(path))
            else:
                stamp, facts = self.known.open(path, self.max_pixels)
                self._add(stamp)
            size = image.size if image is not None else (facts.width, facts.height)
            kept = image if self.known is None else None
            names = str(medium.name), display_name(path)
            self.images.append(SeenImage(medium.kind, *names, size, tiling.grid(*size), kept, facts))
        return [TileSource(seen.grid, seen.size) for seen in self.images]

    def _add(self, stamp: Stamp | None) -> None:
        if stamp is not None:
            self.stamps.append(stamp)


class PlainFiles:
    """Annotation files without a model: no tokens; tiles are those of the standard grid (448 px, at most 12).

    It has what the checker asks of a `MultimodalDataset`.

    Args:
        data_paths: the files.
        image_folders: one per file.
        max_pixels: of an image.
        parse: of the kind of records, as `MultimodalDataset.parse`.

    Raises:
        SettingError, RecordError: files or folders can't be used; one error names all of them.
    """

    num_frames = NUM_FRAMES

    def __init__(
        self,
        data_paths: Sequence[str],
        image_folders: Sequence[str | None],
        max_pixels: int = MAX_PIXELS,
        parse: Callable[[object, str], Record] = parse_record,
    ):
        self.parse, self.max_pixels = parse, max_pixels
        self.sources, errors = [], []
        tiling, self.cache_dir = DynamicTiling(), get_cache_dir()
        for path, folder in zip(data_paths, image_folders, strict=True):
            try:
                index = open_records(path, self.cache_dir)
                images = open_images(folder, folder_of(path))
                self.sources.append(SimpleNamespace(index=index, folder=images, name=stem_of(path), tiling=tiling))
            except DataError as error:
                errors.append(error)
        raise_together(errors)
        self.picks = [np.arange(len(source.index)) for source in self.sources]
        self.rejected: list[frozenset[int]] = [frozenset()] * len(self.sources)

    def __len__(self) -> int:
        return sum(map(len, self.picks))

    def record(self, number: int, row: int) -> Record:
        """As `MultimodalDataset.record`."""
        index = self.sources[number].index
        return self.parse(index.parse(row), index.source(row))

    def load(self, number: int, row: int, open_media: UncutMedia, record: Record) -> dict:
        """As `MultimodalDataset.load`, without tokens."""
        source = self.sources[number]
        try:
            media, paths = [], []
            for medium in record.media:
                path = source.folder.resolve(medium.name)
                count = len(load_frames(path, self.num_frames, self.max_pixels)) if medium.kind == "video" else 0
                media += [Medium("frame", medium.name)] * count or [medium]
                paths += [path] * max(count, 1)
            tilings = [source.tiling.limited(1) if medium.kind == "frame" else source.tiling for medium in media]
            tiles = open_media(media, paths, tilings)
            normalize_boxes(record, lambda place: tiles[place].size)
        except MediaError as error:
            raise error.in_record(record.source) from None
        return _without_tokens(tiles)


@dataclass(frozen=True)
class AskedFile:
    """Questions about images, such as a benchmark's, to be compared with training data.

    Attributes:
        name: of the file.
        path: the file.
        questions: name, text and paths of the images of each.
    """

    name: str
    path: str
    questions: Sequence[tuple[str, str, Sequence[str]]]

    @property
    def index(self) -> "AskedFile":
        """In the place of a file's index of records."""
        return self

    def line(self, row: int) -> int:
        """The place of a question, counted from 1."""
        return row + 1

    def __len__(self) -> int:
        return len(self.questions)

    def source(self, row: int) -> str:
        """The name of a question."""
        return f"{self.path}#{self.questions[row][0]}"

    def parse(self, row: int) -> str:
        """The text of a question."""
        return self.questions[row][1]


class AskedFiles:
    """Files of questions, as the checker opens annotation files."""

    num_frames = NUM_FRAMES

    def __init__(self, files: Sequence[AskedFile], max_pixels: int = MAX_PIXELS):
        self.sources, self.max_pixels = list(files), max_pixels
        self.rejected: list[frozenset[int]] = [frozenset()] * len(files)

    def record(self, number: int, row: int) -> Record:
        """A question as a record without an answer."""
        asked = self.sources[number]
        return Record((Turn("user", (asked.questions[row][1],)),), asked.source(row))

    def load(self, number: int, row: int, open_media: UncutMedia, record: Record) -> dict:
        """As `PlainFiles.load`."""
        asked, tiling = self.sources[number], DynamicTiling()
        paths = asked.questions[row][2]
        try:
            tiles = open_media([Medium("image", path) for path in paths], paths, [tiling] * len(paths))
        except MediaError as error:
            raise error.in_record(record.source) from None
        return _without_tokens(tiles)


def _without_tokens(tiles: Sequence[TileSource]) -> dict:
    empty = torch.empty(0, dtype=torch.int64)
    return {
        "input_ids": empty,
        "labels": empty,
        "num_tiles": sum(tile.grid.num_tiles for tile in tiles),
        "fate": FATES[FITS],
    }


Checked = MultimodalDataset | PlainFiles | AskedFiles


def see(dataset: Checked, number: int, row: int, media: UncutMedia | None = None, record: Record | None = None) -> Seen:
    """Open record `row` of file `number` with its media.

    Args:
        media: opens them; by default images are kept.
        record: the record, where it has been read already.

    Raises:
        RecordError: it can't be trained on.
    """
    media = media or UncutMedia(dataset.num_frames, dataset.max_pixels)
    record = record or dataset.record(number, row)
    sample = dataset.load(number, row, open_media=media, record=record)
    return Seen(record, sample, media.images)
