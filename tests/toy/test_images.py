import random

import numpy as np
import pytest

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.toy.images import CELL, JITTER, RGB, TILE, draw, make_scene
from xtuner_plugins.toy.language import COLORS

GRIDS = [(3, 2), (2, 3), (2, 2), (1, 1)]


def scenes(count=200, **options):
    rng = random.Random(1)
    return [make_scene(rng, GRIDS[index % len(GRIDS)], **options) for index in range(count)]


def test_a_seed_gives_the_same_scene_and_pixels():
    first, second = (make_scene(random.Random("a"), (3, 2)) for _ in range(2))
    assert first == second != make_scene(random.Random("b"), (3, 2))
    assert draw(first).tobytes() == draw(second).tobytes()


@pytest.mark.parametrize("max_signs", [1, 3])
def test_signs_stay_in_their_tile_and_near_the_middle_of_their_cells(max_signs):
    for scene in scenes(max_signs=max_signs):
        for sign in scene.signs:
            assert 10 <= int(sign.number) <= 99 and sign.color in COLORS
            # Three cells fit a tile of four with one to spare, and no mark is nearer than 8 px to its cell's border.
            assert sign.x // TILE == (sign.x + 3 * CELL - 1) // TILE and sign.y // TILE == (sign.y + CELL - 1) // TILE
            for _, x, y in sign.marks:
                assert abs(x % CELL - CELL // 2) <= JITTER and abs(y % CELL - CELL // 2) <= JITTER


def test_a_crossing_sign_has_marks_in_two_tiles_and_no_border_cuts_one():
    scenes_with_a_border = [scene for scene in scenes(crossing=1.0) if scene.width > TILE]
    for scene in scenes_with_a_border:
        for sign in scene.signs:
            assert sign.crosses and sign.y // TILE == (sign.y + CELL - 1) // TILE
            for _, x, y in sign.marks:
                assert abs(x % CELL - CELL // 2) <= JITTER and abs(y % CELL - CELL // 2) <= JITTER
    assert sum(len(scene.signs) for scene in scenes_with_a_border) > 0.9 * len(scenes_with_a_border)


def test_nothing_covers_anything_else_and_every_question_has_one_answer():
    for scene in scenes(max_signs=3):
        boxes = [(s.x - s.size // 2, s.y - s.size // 2, s.x + s.size // 2, s.y + s.size // 2) for s in scene.shapes]
        boxes += [(s.x, s.y, s.x + 3 * CELL, s.y + CELL) for s in scene.signs]
        for index, a in enumerate(boxes):
            assert 0 <= a[0] and 0 <= a[1] and a[2] <= scene.width and a[3] <= scene.height
            assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:index])
        assert len({shape.kind for shape in scene.shapes}) == len(scene.shapes)
        assert len({sign.color for sign in scene.signs}) == len(scene.signs)


def test_the_image_shows_what_the_scene_says():
    for scene in scenes(60):
        pixels = np.asarray(draw(scene), dtype=int)
        for shape in scene.shapes:
            # Every kind of shape covers its own middle; a shade is off by at most 14.
            assert np.abs(pixels[shape.y, shape.x] - RGB[shape.color]).max() <= 14
        for sign in scene.signs:
            _, x, y = sign.marks[0]
            assert np.abs(pixels[y, x] - RGB[sign.color]).max() <= 14
            for _, x, y in sign.marks[1:]:
                window = pixels[y - 8 : y + 8, x - 8 : x + 8]
                assert window.min() < 60 and window.max() > 220  # dark ink on a light plate


def test_digits_differ_in_their_pixels():
    base = make_scene(random.Random(3), (3, 2))
    sign = base.signs[0]
    seen = set()
    for digit in "0123456789":
        scene = type(base)(base.width, base.height, (type(sign)(**{**vars(sign), "number": "1" + digit}),), (), 5)
        seen.add(draw(scene).tobytes())
    assert len(seen) == 10


def test_digits_are_lost_in_one_tile():
    """The resolution question means something: at a third of the size two numbers can hardly be told apart."""
    base = make_scene(random.Random(3), (3, 2))
    sign = base.signs[0]

    def tiles(number):
        return tile_of(type(base)(base.width, base.height, (type(sign)(**{**vars(sign), "number": number}),), (), 5))

    def tile_of(scene):
        image = draw(scene)
        return [DynamicTiling(max_tiles=most, tile_size=TILE)(image).int() for most in (6, 1)]

    (sharp, small), (sharp_other, small_other) = tiles("38"), tiles("83")
    assert (sharp - sharp_other).abs().sum() > 4 * (small - small_other).abs().sum() > 0
