"""What each cell of an image's tiles shows: the encoder learns to see it, the LLM to read it in words.

A tile of 112 px has 4 x 4 cells of 28 px, numbered in reading order; a cell becomes one image token.
"""

import random

import torch

from xtuner_plugins.toy.images import CELL, COLORS, SHAPES, TILE, Scene

SIDE = TILE // CELL
IGNORE = -100

# name: number of classes, 0 is "nothing here"
HEADS = {"digit": 11, "badge": len(COLORS) + 1, "shape": len(SHAPES) + 1, "color": len(COLORS) + 1}


def count_tiles(scene: Scene) -> int:
    """Tiles of a scene's image, with the thumbnail where there is more than one."""
    num_tiles = (scene.width // TILE) * (scene.height // TILE)
    return num_tiles + (num_tiles > 1)


def cell_labels(scene: Scene) -> torch.Tensor:
    """Classes of every cell, int64 [T, 4, 16]: the heads in the order of `HEADS`, -100 where nothing is asked.

    Badges and digits belong to the cell of their center, a shape to the cell of its center in the last tile, which
    shows the whole image. In the other tiles shapes may be cut, so the cells they touch are not asked about; in a
    thumbnail digits and badges are not.
    """
    columns, rows = scene.width // TILE, scene.height // TILE
    labels = torch.zeros(count_tiles(scene), len(HEADS), SIDE * SIDE, dtype=torch.long)
    for sign in scene.signs:
        for index, (name, x, y) in enumerate(sign.marks):
            head, value = (0, 1 + int(name)) if index else (1, 1 + COLORS.index(name))
            labels[(y // TILE) * columns + x // TILE, head, _cell(x, y)] = value
    if columns * rows > 1:
        labels[-1, :2] = IGNORE
        for shape in scene.shapes:
            low, high = -(shape.size // 2), shape.size // 2
            for y in range((shape.y + low) // CELL * CELL, shape.y + high + 1, CELL):
                for x in range((shape.x + low) // CELL * CELL, shape.x + high + 1, CELL):
                    labels[(y // TILE) * columns + x // TILE, 2:, _cell(x, y)] = IGNORE
    for shape in scene.shapes:
        cell = _whole_cell(scene, shape.x, shape.y)
        labels[-1, 2, cell] = 1 + SHAPES.index(shape.kind)
        labels[-1, 3, cell] = 1 + COLORS.index(shape.color)
    return labels


def in_words(scene: Scene, rng: random.Random, keep_blanks: float = 1.0) -> str:
    """A scene in words, one per cell and tile after tile: " . . red47 . bluestar .".

    A badge and two digits fill three cells; a shape is one compound.

    Args:
        scene: What the image shows.
        rng: Chooses the empty cells that are written.
        keep_blanks: Share of the empty cells that are written as " ."; fewer make a shorter text.
    """
    columns = scene.width // TILE
    cells = [[""] * SIDE * SIDE for _ in range(count_tiles(scene))]
    for sign in scene.signs:
        for index, (name, x, y) in enumerate(sign.marks):
            cells[(y // TILE) * columns + x // TILE][_cell(x, y)] = name if index else f" {name}"
    for shape in scene.shapes:
        cells[-1][_whole_cell(scene, shape.x, shape.y)] = f" {shape.color}{shape.kind}"
    return "".join(word or (" ." if rng.random() < keep_blanks else "") for tile in cells for word in tile)


def _cell(x: int, y: int) -> int:
    return (y % TILE // CELL) * SIDE + x % TILE // CELL


def _whole_cell(scene: Scene, x: int, y: int) -> int:
    return (y * SIDE // scene.height) * SIDE + x * SIDE // scene.width
