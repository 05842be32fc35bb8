"""The image shows what the scene says, the cells what the real tiling puts there, and the words say it once."""

import random

import numpy as np

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.toy import cells
from xtuner_plugins.toy.images import CELL, RGB, SHAPES, TILE, draw, make_scene

GRIDS = [(3, 2), (2, 3), (2, 2), (1, 1)]
cut = DynamicTiling(max_tiles=6, tile_size=TILE)


def test_pixels_cells_and_words_agree_with_the_scene():
    rng = random.Random(1)
    for scene in [make_scene(rng, GRIDS[index % len(GRIDS)]) for index in range(60)]:
        image, labels = draw(scene), cells.cell_labels(scene)
        tiles, pixels = cut(image), np.asarray(image, dtype=int)
        for mark in (*scene.shapes, *(sign for sign in scene.signs)):
            x, y = (mark.x, mark.y) if mark in scene.shapes else mark.marks[0][1:]
            assert np.abs(pixels[y, x] - RGB[mark.color]).max() <= 14  # a shade
        assert len(tiles) == len(labels) == cells.count_tiles(scene) == cut.grid(*image.size).num_tiles
        for tile, cell in (labels[:, 0] > 0).nonzero().tolist():
            # A dark digit on a light plate in the very cell that the label names.
            y, x = cell // 4 * CELL, cell % 4 * CELL
            window = tiles[tile, :, y : y + CELL, x : x + CELL]
            assert window.min() < 60 and window.max() > 220
        assert (labels[:, 0] > 0).sum() == 2 * len(scene.signs)
        assert (labels[-1, :2] == cells.IGNORE).all() == (len(tiles) > 1)  # a thumbnail shows no digit
        assert (labels[-1, 2] > 0).sum() == len(scene.shapes) == (labels[-1, 3] > 0).sum()

        words = cells.in_words(scene, random.Random(0)).replace(" .", "")
        assert all(words.count(f" {sign.color}{sign.number}") == 1 for sign in scene.signs)
        assert all(words.count(f" {shape.color}{shape.kind}") == 1 for shape in scene.shapes)
        assert sum(words.count(kind) for kind in SHAPES) == len(scene.shapes)
