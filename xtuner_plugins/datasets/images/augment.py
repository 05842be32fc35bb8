"""Random changes of training images that leave answers true; off unless a dataset asks for them.

    augment = dict(jpeg_quality=(75, 100))                        # what the official recipe does
    augment = dict(jpeg_quality=(75, 100), color=0.2, crop=0.9)

    jpeg_quality  each tile is encoded as JPEG with a quality of this range, and decoded
    color         brightness, contrast and saturation are each multiplied by a factor from 1 - color to 1 + color
    crop          a window is cut out of the image and stretched back over the image's grid; its sides are this share
                  of the image's or more, the same share for both

The boxes of a record move with the window, which always holds them whole. What a record says in words doesn't move, so
crop only where no answer depends on the margins ("how many", "on the far left"). Images are left whole where a record
has several of them, a video, or marks that aren't boxes, and where moved boxes would change the number of tokens, so
that measured lengths hold. Images aren't mirrored, because text and directions would be.

Each sample draws from a generator of its own, from the dataset's seed, the epoch and the sample's index: a resumed run
repeats what an uninterrupted one does, whatever the workers and ranks.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..errors import SettingError
from ..records.boxes import ANY_TAG, BOX, FRAME_SIZE, find_boxes
from ..records.records import Record
from ..text.conversation import Piece
from .routes import TileSource
from .tiling import DynamicTiling, cut_tiles

OFFICIAL = {"jpeg_quality": (75, 100)}  # what `data_augment` means in the official code
KNOWN = ("jpeg_quality", "color", "crop")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")  # of JSON
TRIES = 8  # windows that are tried before a record is left whole


class Window(NamedTuple):
    """A part of an image, in shares of its width and height."""

    left: float
    top: float
    share: float  # of each side


WHOLE = Window(0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Augmentation:
    """What may be changed, as the module describes it; None or 0 leaves it.

    Attributes:
        jpeg_quality: lowest and highest quality, 1 to 100.
        color: largest relative change, below 1.
        crop: smallest share of each side, 0.5 to 1.
    """

    jpeg_quality: tuple[int, int] | None = None
    color: float = 0.0
    crop: float = 1.0

    @classmethod
    def of(cls, settings: Mapping | None) -> "Augmentation | None":
        """From the settings of a config; None where nothing is to be changed.

        Raises:
            SettingError: an unknown name or an impossible value.
        """
        if not settings:
            return None
        if unknown := set(settings) - set(KNOWN):
            raise _refusal(f"augment has {sorted(map(str, unknown))}", f"give some of {', '.join(KNOWN)}")
        quality, color, crop = settings.get("jpeg_quality"), settings.get("color") or 0.0, settings.get("crop") or 1.0
        if quality is not None:
            whole = isinstance(quality, Sequence) and len(quality) == 2 and all(type(each) is int for each in quality)
            if not whole or not 1 <= quality[0] <= quality[1] <= 100:
                raise _refusal(f"augment has jpeg_quality={quality!r}", "give (lowest, highest) from 1 to 100")
            quality = tuple(quality)
        if not _is_number(color) or not 0 <= color < 1:
            raise _refusal(f"augment has color={color!r}", "give a number from 0 to below 1, such as 0.2")
        if not _is_number(crop) or not 0.5 <= crop <= 1:
            raise _refusal(f"augment has crop={crop!r}", "give the smallest share of each side, from 0.5 to 1")
        found = cls(quality, float(color), float(crop))
        return None if found == cls() else found

    def draw(self, record: Record, rng: np.random.Generator) -> "Changes":
        """The changes of one sample."""
        color = rng.uniform(1 - self.color, 1 + self.color, size=3) if self.color else ()
        return Changes(self._draw_window(record, rng), tuple(map(float, color)), self.jpeg_quality, rng)

    def draw_along(
        self, record: Record, pieces: list[Piece], tokenize: Callable[[Record], list[Piece]], rng: np.random.Generator
    ) -> tuple["Changes", list[Piece]]:
        """As `draw`, and the tokens of the record with its boxes moved along: as many in each piece as before.

        Args:
            pieces: tokens of the record as it is.
            tokenize: makes the pieces of another record.
        """
        for _ in range(TRIES):
            changes = self.draw(record, rng)
            moved = move_boxes(record, changes.window)
            found = pieces if moved == record else tokenize(moved)
            if [len(piece.ids) for piece in found] == [len(piece.ids) for piece in pieces]:
                return changes, found
        return replace(changes, window=WHOLE), pieces

    def _draw_window(self, record: Record, rng: np.random.Generator) -> Window:
        """A window that holds every box of the record; `WHOLE` where the record can't be cropped."""
        if self.crop == 1 or [medium.kind for medium in record.media] != ["image"]:
            return WHOLE
        corners = np.array([box for text in _texts(record) for box in find_boxes(text)]).reshape(-1, 4) / FRAME_SIZE
        share, places = rng.uniform(self.crop, 1.0), rng.uniform(size=2)
        lowest = np.maximum(corners[:, 2:].max(axis=0, initial=0.0) - share, 0.0)
        highest = np.minimum(corners[:, :2].min(axis=0, initial=1.0), 1.0 - share)
        if (lowest > highest).any() or not all(map(_is_movable, _texts(record))):
            return WHOLE
        left, top = lowest + places * (highest - lowest)
        return Window(float(left), float(top), float(share))


@dataclass(frozen=True)
class Changes:
    """What is changed in the images of one sample.

    Attributes:
        window: what remains of the only image.
        color: factors of brightness, contrast and saturation; empty: none.
        jpeg_quality: lowest and highest quality of a tile, or None.
        rng: draws the qualities, tile after tile.
    """

    window: Window
    color: tuple[float, ...]
    jpeg_quality: tuple[int, int] | None
    rng: np.random.Generator

    def cut(self, image: Image.Image, rule: DynamicTiling) -> TileSource:
        """Tiles of the changed image, on the grid of the image as it is.

        Args:
            image: RGB.
        """
        from torchvision.transforms.v2 import functional as transforms

        size, grid = image.size, rule.grid(*image.size)
        if self.window != WHOLE:
            image = image.crop(_edges(self.window, *size))
        for name, factor in zip(_COLOR_CHANGES, self.color, strict=False):
            image = getattr(transforms, name)(image, factor)
        tiles = cut_tiles(image, grid, rule.tile_size)
        if self.jpeg_quality:
            low, high = self.jpeg_quality
            qualities = self.rng.integers(low, high + 1, size=len(tiles)).tolist()
            pairs = zip(tiles, qualities, strict=True)
            tiles = torch.stack([transforms.jpeg(tile, quality) for tile, quality in pairs])
        return TileSource(grid, size, tiles=tiles)


def move_boxes(record: Record, window: Window) -> Record:
    """The record with its boxes in the frame of a window that holds them, written as before."""
    if window == WHOLE:
        return record

    def moved(match: re.Match) -> str:
        values = iter(
            _clip((value / FRAME_SIZE - place) / window.share)
            for box in find_boxes(match[0])
            for value, place in zip(box, (window.left, window.top) * 2, strict=True)
        )
        return NUMBER.sub(lambda _: str(next(values)), match[0])

    turns = tuple(
        turn._replace(parts=tuple(BOX.sub(moved, part) if isinstance(part, str) else part for part in turn.parts))
        for turn in record.turns
    )
    return replace(record, turns=turns)


_COLOR_CHANGES = ("adjust_brightness", "adjust_contrast", "adjust_saturation")  # of torchvision


def _edges(window: Window, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a window in pixels; at least one pixel each way."""
    left, top = int(window.left * width), int(window.top * height)
    right, bottom = round((window.left + window.share) * width), round((window.top + window.share) * height)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _clip(share: float) -> int:
    return min(max(round(share * FRAME_SIZE), 0), FRAME_SIZE)


def _is_movable(text: str) -> bool:
    """Whether every mark of a text with `<` is a reference or a list of boxes."""

    def without_boxes(match: re.Match) -> str:
        num_boxes = len(find_boxes(match[0]))
        return "" if num_boxes and len(NUMBER.findall(match[0])) == 4 * num_boxes else match[0]

    rest = BOX.sub(without_boxes, text)
    return set(ANY_TAG.findall(rest)) <= {"<ref>", "</ref>"}


def _texts(record: Record) -> list[str]:
    return [part for turn in record.turns for part in turn.parts if isinstance(part, str) and "<" in part]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _refusal(problem: str, remedy: str) -> SettingError:
    return SettingError("augment", problem, remedy)
