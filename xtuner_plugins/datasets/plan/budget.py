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

from ...ranges import check, image_tokens
from ..images.tiling import DynamicTiling
from ..text.conversation import Encoded

FITS, SHRUNK, TRUNCATED, DROPPED, BROKEN, REJECTED = range(6)  # fates; from `DROPPED` on a sample is left out
FATES = ("fits", "shrink_tiles", "truncate_text", "too_long", "broken", "rejected")  # their names
FRAME = (0, 0)  # the size that stands for a video frame, which is always one tile


def first_limit(max_tiles: int, num_images: int) -> int:
    """The tile limit of each image of a sample before anything is shrunk, at least 1: they share the sample's limit.

    Video frames aren't counted.
    """
    return max(1, max_tiles // max(1, num_images))


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
        check("max_length", self.max_length)

    def count(self, tiling: DynamicTiling, size: tuple[int, int], limit: int) -> int:
        """Tiles of one image under a limit."""
        return 1 if tuple(size) == FRAME else tiling.limited(limit).grid(int(size[0]), int(size[1])).num_tiles

    def tokens(self, num_tiles: Sequence[int]) -> int:
        """Tokens of all images' spans: those of their tiles between a start and an end token."""
        return image_tokens(num_tiles, self.tokens_per_tile)

    def fit(
        self, tiling: DynamicTiling, sizes: Sequence[tuple[int, int]], text_tokens: int, before: Sequence[int]
    ) -> tuple[list[int], list[int], int]:
        """What becomes of a sample.

        Args:
            tiling: its limits are those of the sample.
            sizes: (width, height) of each image, `FRAME` for a frame.
            text_tokens: tokens besides the images' spans.
            before: text tokens and images before the first supervised token.

        Returns:
            The tile limit of each image, its tiles under this limit (thumbnail included), and the fate of the sample:
            `FITS`, `SHRUNK`, `TRUNCATED` (its end has to be cut off) or `DROPPED`.
        """
        frames, fate = [tuple(size) == FRAME for size in sizes], FITS
        share = first_limit(tiling.max_tiles, frames.count(False))
        limits = [1 if frame else share for frame in frames]
        counts = [self.count(tiling, size, limit) for size, limit in zip(sizes, limits, strict=True)]
        while self.tokens(counts) > self.max_length - text_tokens and max(counts, default=1) > 1:
            # the image with the fewest source pixels per tile loses least; of equal ones the first with most tiles
            number = min(
                (index for index, count in enumerate(counts) if count > 1),
                key=lambda index: (sizes[index][0] * sizes[index][1] / counts[index], -counts[index]),
            )
            grid = tiling.limited(limits[number]).grid(*map(int, sizes[number]))
            limits[number] = grid.columns * grid.rows - 1
            counts[number], fate = self.count(tiling, sizes[number], limits[number]), SHRUNK
        if text_tokens + self.tokens(counts) > self.max_length:
            learns = before[0] + self.tokens(counts[: before[1]]) < self.max_length  # also when its end is cut off
            fate = TRUNCATED if self.may_cut and learns else DROPPED
        return limits, counts, fate


def truncate(sample: Encoded, max_length: int) -> Encoded:
    """The sample with its end cut off: at most `max_length` tokens, and only whole spans of images."""
    spans = tuple(span for span in sample.spans if sum(span) <= max_length)
    end = min([max_length, *(first for first, length in sample.spans if first + length > max_length)])
    return Encoded(sample.input_ids[:end], sample.labels[:end], spans)
