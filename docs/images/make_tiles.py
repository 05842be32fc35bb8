"""Writes docs/images/tiles.png: an image of the quick start, and what a model sees of it with one tile and with many.

python docs/images/make_tiles.py [OUT_DIR]
"""

import random
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works from a checkout that isn't installed

from xtuner_plugins.datasets.images.tiling import DynamicTiling  # noqa: E402
from xtuner_plugins.toy.images import TILE, draw, make_scene  # noqa: E402

GRID = (4, 3)  # columns and rows of tiles
SIDE, GAP = 112, 4  # pixels of a shown tile, and between tiles
SEED = 3
PAGE = (250, 250, 248)


def tiles_of(image: Image.Image, max_tiles: int) -> list[Image.Image]:
    """The tiles of an image as training cuts them, thumbnail last."""
    tiles = DynamicTiling(max_tiles=max_tiles, tile_size=TILE)(image)
    return [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in tiles]


def sheet() -> Image.Image:
    """From left to right: the image, its one tile, its tiles with thumbnail; each tile enlarged to the same size."""
    columns, rows = GRID
    image = draw(make_scene(random.Random(SEED), GRID))
    (one,) = tiles_of(image, 1)
    *grid, thumbnail = tiles_of(image, columns * rows)
    height = rows * (SIDE + GAP) - GAP
    width = round(image.width / image.height * height)
    out = Image.new("RGB", (width + (columns + 2) * (SIDE + GAP) + 8 * GAP, height), PAGE)
    out.paste(image.resize((width, height), Image.Resampling.LANCZOS), (0, 0))
    middle, left = (height - SIDE) // 2, width + 4 * GAP
    out.paste(one.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, middle))
    left += SIDE + 4 * GAP
    for number, tile in enumerate(grid):
        row, column = divmod(number, columns)
        spot = (left + column * (SIDE + GAP), row * (SIDE + GAP))
        out.paste(tile.resize((SIDE, SIDE), Image.Resampling.NEAREST), spot)
    out.paste(thumbnail.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left + columns * (SIDE + GAP) + GAP, middle))
    return out


def main(folder: str | Path = Path(__file__).parent) -> None:
    sheet().save(Path(folder, "tiles.png"), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
