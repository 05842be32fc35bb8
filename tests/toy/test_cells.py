"""What the cells show is what the real tiling puts there, and what the words say."""

import random

from tests.toy.test_images import scenes
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.toy import cells
from xtuner_plugins.toy.images import CELL, SHAPES, TILE, draw


def test_cells_agree_with_the_real_tiling():
    for scene in scenes(40):
        tiles = DynamicTiling(max_tiles=6, tile_size=TILE)(draw(scene))
        labels = cells.cell_labels(scene)
        assert len(tiles) == len(labels) == cells.count_tiles(scene)
        assert len(tiles) == DynamicTiling(max_tiles=6, tile_size=TILE).grid(scene.width, scene.height).num_tiles
        for tile, cell in (labels[:, 0] > 0).nonzero().tolist():
            # A dark digit on a light plate in the very cell that the label names.
            y, x = cell // 4 * CELL, cell % 4 * CELL
            window = tiles[tile, :, y : y + CELL, x : x + CELL]
            assert window.min() < 60 and window.max() > 220
        assert (labels[:, 0] > 0).sum() == 2 * len(scene.signs)
        assert (labels[-1, 2] > 0).sum() == len(scene.shapes) == (labels[-1, 3] > 0).sum()


def test_words_say_everything_once():
    for scene in scenes(40):
        words = cells.in_words(scene, random.Random(0)).replace(" .", "")
        for sign in scene.signs:
            assert words.count(f" {sign.color}{sign.number}") == 1
        for shape in scene.shapes:
            assert words.count(f" {shape.color}{shape.kind}") == 1
        assert sum(words.count(kind) for kind in SHAPES) == len(scene.shapes)
