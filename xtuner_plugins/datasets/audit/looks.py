"""What the checker keeps of an image: its size, a hash of its pixels, and two perceptual hashes, mirrored and not."""

from typing import NamedTuple

import numpy as np
import xxhash
from PIL import Image

from ..images.media import MediaSource, display_name, load_reduced
from ..images.routes import check_pixels
from ..plan.complaints import stamp_files

SIDE = 8  # a look compares the neighbors among 9 x 9 gray values
REDUCED = 240  # pixels that both sides of an image keep; with fewer, fewer scaled copies are found
MOST_KNOWN = 50_000  # images that a process remembers, 25 MB
Stamp = tuple[str, list[int] | str]  # path and state of a file (`plan.complaints`)


class ImageFacts(NamedTuple):
    """Facts about a decoded image; looks are uint64.

    Equal `pixels` mean equal pixels. Different ones mean different pixels too, except for a JPEG that was coded anew.
    """

    width: int
    height: int
    pixels: int
    across: int
    down: int
    mirrored_across: int
    mirrored_down: int


def look_at(image: Image.Image, size: tuple[int, int] | None = None, content: bytes | None = None) -> ImageFacts:
    """The facts of an RGB image.

    Looks are dHashes in both directions: where gray values rise to the right, and downwards. Other compression,
    brightness and scale change few of their 2 x 64 bits. Means are exact: `reducing_gap` is no faster here, and put a
    quarter of scaled copies beyond the limit of `duplicates.NEAR`.

    Args:
        size: of the whole image, where this is a reduced one; default: this image's.
        content: what decides the pixels of the whole image; default: size and pixels of this one.
    """
    gray = np.asarray(image.convert("L").resize((SIDE + 1, SIDE + 1), Image.Resampling.BOX), np.int16)
    if content is None:
        content = repr(image.size).encode() + image.tobytes()
    width, height = size or image.size
    return ImageFacts(width, height, xxhash.xxh3_64_intdigest(content), *_look(gray), *_look(gray[:, ::-1]))


def _look(gray: np.ndarray) -> tuple[int, int]:
    rises = gray[:SIDE, 1:] > gray[:SIDE, :-1], gray[1:, :SIDE] > gray[:-1, :SIDE]
    return tuple(int(np.packbits(rise).view(np.uint64)[0]) for rise in rises)


class KnownImages:
    """Facts of the images that this process has decoded: a file that many records name is decoded once.

    Each has the stamp that its file had before it was opened; the oldest are forgotten where there are many.
    """

    def __init__(self):
        self._known: dict[str, tuple[Stamp | None, ImageFacts]] = {}

    def open(self, source: MediaSource, max_pixels: int) -> tuple[Stamp | None, ImageFacts]:
        """Stamp and facts of an image, decoded if it isn't known; what isn't a file of its own is never known.

        Raises:
            MediaError: it can't be decoded, or has more pixels.
        """
        if isinstance(source, str) and (found := self._known.get(source)) is not None:
            return found
        stamp = stamp_of(source)
        image, size, content = load_reduced(source, max_pixels, REDUCED)
        check_pixels(image, display_name(source))
        found = stamp, look_at(image, size, content)
        if isinstance(source, str):
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[source] = found
        return found


def stamp_of(source: MediaSource) -> Stamp | None:
    """Path and state of a file; None for an image in an archive or a table, whose own key covers it."""
    return stamp_files([source])[0] if isinstance(source, str) else None
