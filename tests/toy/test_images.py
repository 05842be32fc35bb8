import random

import numpy as np

from xtuner_plugins.toy.images import CELL, JITTER, RGB, TILE, draw, make_scene

GRIDS = [(3, 2), (2, 3), (2, 2), (1, 1)]


def scenes(count=200, **options):
    rng = random.Random(1)
    return [make_scene(rng, GRIDS[index % len(GRIDS)], **options) for index in range(count)]


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
