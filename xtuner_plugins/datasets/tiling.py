"""Dynamic tiling: one picture becomes a grid of square tiles and, if that is more than one, a thumbnail.

A wide picture, `max_tiles=6`, `tile_size=S`:

    +-----------------------+         resized to 3S x 2S, then cut row by row
    |   1   |   2   |   3   |
    +-------+-------+-------+   +---+
    |   4   |   5   |   6   |   | 7 |   the whole picture, S x S, always last
    +-----------------------+   +---+

This is the algorithm of InternVL 1.5 (arXiv 2404.16821, section 3.2) as its code publishes it; grid and pixels
are equal to it, so a model that was trained elsewhere sees here what it saw there. Two details of it decide
ties and are kept: among grids of one area the order is that in which the published code's Python set yields them
(it matters only with `min_num > 1`), and differences of aspect ratio are compared as exact floats.
"""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image

from .errors import SettingError

MAX_TILES = 256  # the published algorithm is only ever used with up to 40


@lru_cache(maxsize=256, typed=True)  # typed: 1.0 is no tile limit, though it equals 1
def candidate_grids(min_num: int, max_num: int) -> tuple[tuple[int, int, float], ...]:
    """All grids of `min_num` to `max_num` tiles, by area, as (cols, rows, cols / rows).

    Raises:
        SettingError: `1 <= min_num <= max_num` doesn't hold.
    """
    if not (isinstance(min_num, int) and isinstance(max_num, int) and 1 <= min_num <= max_num <= MAX_TILES):
        raise SettingError(
            "tile_limits",
            f"min_tiles={min_num!r} and max_tiles={max_num!r} are no tile limits",
            f"give whole numbers with 1 <= min_tiles <= max_tiles <= {MAX_TILES}",
        )
    # The set is filled in the published order and sorted by area only: Python's sort is stable, so the set's own
    # order, which depends on the order of filling, decides between grids of one area.
    grids = set()
    for side in range(min_num, max_num + 1):
        for cols in range(1, side + 1):
            for rows in range(1, min(side, max_num // cols) + 1):
                if cols * rows >= min_num:
                    grids.add((cols, rows))
    return tuple((cols, rows, cols / rows) for cols, rows in sorted(grids, key=lambda g: g[0] * g[1]))


@lru_cache(maxsize=1 << 16)
def find_grid(width: int, height: int, *, min_num: int = 1, max_num: int = 12, tile_size: int = 448) -> tuple[int, int]:
    """The grid (cols, rows) for a picture of `width` x `height` pixels.

    The grid whose aspect ratio is closest wins. Of equally close ones the later (larger) wins if the picture has
    more than half as many pixels as that grid's tiles together.

    Raises:
        SettingError: impossible limits, or a picture without pixels.
    """
    if width < 1 or height < 1 or tile_size < 1:
        raise SettingError(
            "tile_limits",
            f"a picture of {width}x{height} in tiles of {tile_size} has no grid",
            "all three must be at least 1",
        )
    aspect, area = width / height, width * height
    best, best_difference = (1, 1), math.inf
    for cols, rows, ratio in candidate_grids(min_num, max_num):
        difference = abs(aspect - ratio)
        if difference < best_difference:
            best, best_difference = (cols, rows), difference
        elif difference == best_difference and area > 0.5 * tile_size * tile_size * cols * rows:
            best = (cols, rows)
    return best


def count_tiles(
    width: int, height: int, *, min_num: int = 1, max_num: int = 12, tile_size: int = 448, use_thumbnail: bool = True
) -> int:
    """How many tiles, the thumbnail included, a picture of this size gives."""
    cols, rows = find_grid(width, height, min_num=min_num, max_num=max_num, tile_size=tile_size)
    num = cols * rows
    return num + 1 if use_thumbnail and num > 1 else num


def count_image_tokens(num_tiles: int, tokens_per_tile: int) -> int:
    """Length in the sequence of one picture's span: its tiles' tokens between a start and an end token."""
    return num_tiles * tokens_per_tile + 2


def cut_tiles(image: Image.Image, cols: int, rows: int, tile_size: int, thumbnail: bool) -> np.ndarray:
    """Resize an RGB picture to the grid and cut it: uint8 `[T, 3, S, S]`, row-major, thumbnail last."""
    size = tile_size
    num = cols * rows
    out = np.empty((num + thumbnail, 3, size, size), np.uint8)
    grid = out[:num].reshape(rows, cols, 3, size, size)
    resized = image.resize((cols * size, rows * size), Image.Resampling.BICUBIC)
    # Band by band: whole rows of a tile are then contiguous copies, three times as fast as permuting pixels.
    for channel, band in enumerate(resized.split()):
        grid[:, :, channel] = np.asarray(band).reshape(rows, size, cols, size).swapaxes(1, 2)
    if thumbnail:
        for channel, band in enumerate(image.resize((size, size), Image.Resampling.BICUBIC).split()):
            out[num, channel] = np.asarray(band)
    return out


def tile_image(
    image: Image.Image, *, min_num: int = 1, max_num: int = 12, tile_size: int = 448, use_thumbnail: bool = True
) -> torch.Tensor:
    """Cut a picture into tiles.

    Args:
        image: an RGB picture, as `media.load_image` returns it.

    Returns:
        uint8 `[T, 3, S, S]`, values 0 to 255: the grid's tiles row by row, then the thumbnail iff `use_thumbnail`
        and the grid has more than one tile.

    Raises:
        SettingError: impossible limits, or a picture that isn't RGB.
    """
    if image.mode != "RGB":
        raise SettingError(
            "image_mode",
            f"tiles are cut from RGB pictures, this one is {image.mode!r}",
            "open it with media.load_image",
        )
    cols, rows = find_grid(*image.size, min_num=min_num, max_num=max_num, tile_size=tile_size)
    return torch.from_numpy(cut_tiles(image, cols, rows, tile_size, use_thumbnail and cols * rows > 1))


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class DynamicTiling:
    """The tiling rule with its settings; call it with an RGB picture to get uint8 `[T, 3, S, S]`.

    Args:
        min_tiles, max_tiles: limits of the grid, the thumbnail not counted.
        tile_size: side of a tile in pixels (S).
        use_thumbnail: append the whole picture when the grid has more than one tile.
    """

    min_tiles: int = 1
    max_tiles: int = 12
    tile_size: int = 448
    use_thumbnail: bool = True

    def __post_init__(self):
        candidate_grids(self.min_tiles, self.max_tiles)  # raises on impossible limits

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return tile_image(image, **self._settings())

    def grid(self, width: int, height: int) -> tuple[int, int]:
        settings = self._settings()
        del settings["use_thumbnail"]
        return find_grid(width, height, **settings)

    def count(self, width: int, height: int) -> int:
        return count_tiles(width, height, **self._settings())

    def limited(self, max_tiles: int) -> "DynamicTiling":
        """The same rule with at most `max_tiles` tiles in the grid."""
        max_tiles = max(1, max_tiles)
        return DynamicTiling(min(self.min_tiles, max_tiles), max_tiles, self.tile_size, self.use_thumbnail)

    def describe(self) -> dict:
        """The settings as plain values (what caches are keyed by)."""
        return asdict(self)

    def _settings(self) -> dict:
        return dict(
            min_num=self.min_tiles, max_num=self.max_tiles, tile_size=self.tile_size, use_thumbnail=self.use_thumbnail
        )
