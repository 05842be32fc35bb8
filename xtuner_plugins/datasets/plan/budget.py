"""How many tiles each image of a sample gets, and what happens when a sample is too long.

Several images share the limit as in the official code: `max_tiles // n` each, at least 1. A sample longer than
`max_length` then goes through these steps until it fits:

    shrink_tiles      take tiles from the image that needs them least (fewest source pixels per tile), down to one each
    truncate_text     cut off the end, never inside an image's span, and only if a supervised token is left
    (drop)            a sample that still doesn't fit is left out, with an entry in the ledger

All of this depends on sizes and lengths alone, so the plan of an epoch and the workers agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import check_whole
from ...hub.constants import IGNORE_INDEX
from ...ranges import image_tokens
from ..images.tiling import DynamicTiling
from ..text.conversation import Encoded

FRAME = (0, 0)  # the size that stands for a video frame, which is always one tile


def first_limit(max_tiles: int, num_images: int, sharing: str = "equal") -> int:
    """The tile limit of each image of a sample before anything is shrunk, at least 1; video frames aren't counted.

    With `sharing` 'equal', as in training, images share the sample's limit; otherwise each may have all, as in engines.
    """
    return max(1, max_tiles // max(1, num_images)) if sharing == "equal" else max_tiles


@dataclass(frozen=True)
class TileBudget:
    """The rules above with their settings.

    Raises:
        SettingError: a length that can't be used.
    """

    tokens_per_tile: int  # N
    max_length: int  # most tokens of a sample
    may_cut: bool = True  # whether the end of a text may be cut off

    def __post_init__(self):
        check_whole("max_length", self.max_length, 1)

    def count(self, tiling: DynamicTiling, size: tuple[int, int], limit: int) -> int:
        """Tiles of one image under a limit."""
        return 1 if tuple(size) == FRAME else tiling.limited(limit).grid(int(size[0]), int(size[1])).num_tiles

    def tokens(self, num_tiles: Sequence[int]) -> int:
        """Tokens of all images' spans: those of their tiles between a start and an end token."""
        return image_tokens(num_tiles, self.tokens_per_tile)

    def first_limits(self, tiling: DynamicTiling, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """The tile limit of each image before anything is shrunk; arguments as `fit`."""
        frames = [tuple(size) == FRAME for size in sizes]
        share = first_limit(tiling.max_tiles, frames.count(False))
        return [1 if frame else share for frame in frames]

    def fit(self, tiling: DynamicTiling, sizes: Sequence[tuple[int, int]], text_tokens: int) -> list[int]:
        """The tile limit of each image so that the sample fits, or comes as near as it can.

        Args:
            tiling: its limits are those of the sample.
            sizes: (width, height) of each image, `FRAME` for a frame.
            text_tokens: tokens besides the images' spans.
        """
        limits = self.first_limits(tiling, sizes)
        counts = [self.count(tiling, size, limit) for size, limit in zip(sizes, limits, strict=True)]
        while self.tokens(counts) > self.max_length - text_tokens and max(counts, default=1) > 1:
            # the image with the fewest source pixels per tile loses least; of equal ones the first with most tiles
            number = min(
                (index for index, count in enumerate(counts) if count > 1),
                key=lambda index: (sizes[index][0] * sizes[index][1] / counts[index], -counts[index]),
            )
            grid = tiling.limited(limits[number]).grid(*map(int, sizes[number]))
            limits[number] = grid.columns * grid.rows - 1
            counts[number] = self.count(tiling, sizes[number], limits[number])
        return limits


def truncate(sample: Encoded, max_length: int) -> tuple[Encoded, int] | None:
    """Cut off the end of a sample.

    Returns:
        The sample with at most `max_length` tokens and the number of its images; None when no supervised token would
        be left.
    """
    end = max_length
    kept = 0
    for first, length in sample.spans:
        if first + length > end:
            end = min(end, first)
            break
        kept += 1
    labels = sample.labels[:end]
    if not np.any(labels != IGNORE_INDEX):
        return None
    return Encoded(sample.input_ids[:end], labels, sample.spans[:kept]), kept
