import random

import numpy as np

from xtuner_plugins.toy.images import RGB, draw, make_scene

GRIDS = [(3, 2), (2, 3), (2, 2), (1, 1)]


def scenes(count=200, **options):
    rng = random.Random(1)
    return [make_scene(rng, GRIDS[index % len(GRIDS)], **options) for index in range(count)]


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
