"""Dynamic tiling: one image becomes a grid of square tiles and, if that is more than one, a thumbnail.

A wide image, `max_tiles=6`, `tile_size=S`:

    +-----------------------+         resized to 3S x 2S, then cut row by row
    |   1   |   2   |   3   |
    +-------+-------+-------+   +---+
    |   4   |   5   |   6   |   | 7 |   the whole image, S x S, always last
    +-----------------------+   +---+

This is the algorithm of InternVL 1.5 (arXiv 2404.16821, section 3.2) as published in its code; grid and pixels are
equal to it, so a model trained elsewhere sees the same tiles here. Two of its details decide ties and are kept: grids
of equal area are in the order in which the published code's Python set yields them (it matters only with
`min_tiles > 1`), and differences of aspect ratio are compared as exact floats.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image

from ...errors import SettingError
from ...ranges import check_tiles


class Grid(NamedTuple):
    """How an image is cut: columns x rows tiles, then `thumbnail` (0 or 1) thumbnails."""

    columns: int
    rows: int
    thumbnail: int

    @property
    def num_tiles(self) -> int:
        """Tiles, the thumbnail included."""
        return self.columns * self.rows + self.thumbnail


@lru_cache(maxsize=256)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int, float], ...]:
    """All grids of `min_tiles` to `max_tiles` tiles, by area, as (columns, rows, columns / rows)."""
    # Python's sort is stable, so the set's own order decides between grids of equal area. It depends on the order of
    # insertion, which is therefore the published one.
    grids = {
        (columns, rows)
        for side in range(min_tiles, max_tiles + 1)
        for columns in range(1, side + 1)
        for rows in range(1, min(side, max_tiles // columns) + 1)
        if columns * rows >= min_tiles
    }
    return tuple((columns, rows, columns / rows) for columns, rows in sorted(grids, key=math.prod))


def cut_tiles(image: Image.Image, grid: Grid, tile_size: int) -> torch.Tensor:
    """Resize an RGB image to the grid and cut it: uint8 `[T, 3, S, S]`, row-major, thumbnail last."""
    size, num = tile_size, grid.columns * grid.rows
    out = np.empty((grid.num_tiles, 3, size, size), np.uint8)
    for tiles, columns, rows in ((out[:num], *grid[:2]), (out[num:], 1, 1))[: 1 + grid.thumbnail]:
        by_place = tiles.reshape(rows, columns, 3, size, size)
        resized = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
        # Copying band by band moves contiguous rows of a tile, which is three times as fast as permuting pixels.
        for channel, band in enumerate(resized.split()):
            by_place[:, :, channel] = np.asarray(band).reshape(rows, size, columns, size).swapaxes(1, 2)
    return torch.from_numpy(out)


def resize_to_grid(image: Image.Image, tiling: "DynamicTiling") -> Image.Image:
    """The image at the size of its grid.

    Of such an image, programs that choose grids by another rule (llama.cpp) cut these same tiles; only a thumbnail may
    be resized in another way.
    """
    grid = tiling.grid(*image.size)
    return image.resize((grid.columns * tiling.tile_size, grid.rows * tiling.tile_size), Image.Resampling.BICUBIC)


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class DynamicTiling:
    """The tiling rule with its settings; call it with an RGB image to get uint8 `[T, 3, S, S]`.

    In a pipeline of MMEngine it takes `dict(img=...)`, an RGB image or array uint8 `[H, W, 3]`, and adds `tiles`.

    Args:
        min_tiles, max_tiles: limits of the grid, the thumbnail not counted.
        tile_size: side of a tile in pixels (S).
        use_thumbnail: append the whole image when the grid has more than one tile.

    Raises:
        SettingError: `1 <= min_tiles <= max_tiles` doesn't hold.
    """

    min_tiles: int = 1
    max_tiles: int = 12
    tile_size: int = 448
    use_thumbnail: bool = True

    def __post_init__(self):
        check_tiles(self.min_tiles, self.max_tiles)

    def __call__(self, image: Image.Image | dict) -> torch.Tensor | dict:
        """The tiles of an image: the grid's row by row, then the thumbnail if there is one; of a dict, it with `tiles`.

        Raises:
            SettingError: the image isn't RGB.
        """
        if isinstance(image, dict):
            found = image["img"]
            return image | {"tiles": self(Image.fromarray(found) if isinstance(found, np.ndarray) else found)}
        if image.mode != "RGB":
            problem = f"tiles are cut from RGB images, this one is {image.mode!r}"
            raise SettingError("image_mode", problem, "open it with media.load_image")
        return cut_tiles(image, self.grid(*image.size), self.tile_size)

    @lru_cache(maxsize=1 << 16)  # noqa: B019  keeps rules alive, which are four numbers
    def grid(self, width: int, height: int) -> Grid:
        """The grid of an image of `width` x `height` pixels.

        The grid whose aspect ratio is closest wins. Of equally close ones the later (larger) wins if the image has
        more than half as many pixels as that grid's tiles together.
        """
        aspect, area, half_tile = width / height, width * height, 0.5 * self.tile_size * self.tile_size
        best, best_difference = (1, 1), math.inf
        for columns, rows, ratio in candidate_grids(self.min_tiles, self.max_tiles):
            difference = abs(aspect - ratio)
            if difference < best_difference:
                best, best_difference = (columns, rows), difference
            elif difference == best_difference and area > half_tile * columns * rows:
                best = (columns, rows)
        return Grid(*best, int(self.use_thumbnail and best != (1, 1)))

    @lru_cache(maxsize=1 << 10)  # noqa: B019  a planner asks for the same few rules millions of times
    def limited(self, max_tiles: int) -> "DynamicTiling":
        """The same rule with at most `max_tiles` tiles in the grid (at least one)."""
        if max_tiles >= self.max_tiles:
            return self
        max_tiles = max(1, max_tiles)
        return DynamicTiling(min(self.min_tiles, max_tiles), max_tiles, self.tile_size, self.use_thumbnail)
