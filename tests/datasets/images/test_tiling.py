"""Grid and pixels against a second implementation, written plainly from the published description."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from PIL import Image
from skimage import data

from xtuner_plugins.datasets.images.tiling import DynamicTiling, resize_to_grid
from xtuner_plugins.errors import SettingError


@cache
def slow_ratios(low, high):
    ratios = set()
    for number in range(low, high + 1):
        for i, j in product(range(1, number + 1), repeat=2):
            if low <= i * j <= high:
                ratios.add((i, j))
    return sorted(ratios, key=lambda ratio: ratio[0] * ratio[1])


def slow_grid(width, height, low, high, size):
    """The published rule, step by step: all ratios, sorted by area; closest wins; a tie goes by area."""
    best, closest = (1, 1), float("inf")
    for i, j in slow_ratios(low, high):
        distance = abs(width / height - i / j)
        if distance < closest or (distance == closest and width * height > 0.5 * size * size * i * j):
            best, closest = (i, j), distance
    return best


def slow_tiles(image, low, high, size, thumbnail):
    """Pillow resize, one crop a tile, in reading order."""
    columns, rows = slow_grid(*image.size, low, high, size)
    whole = image.resize((columns * size, rows * size))
    places = [(x * size, y * size) for y in range(rows) for x in range(columns)]
    crops = [whole.crop((x, y, x + size, y + size)) for x, y in places]
    crops += [image.resize((size, size))] * (thumbnail and len(crops) != 1)
    return np.stack([np.array(crop).transpose(2, 0, 1) for crop in crops])


# Where rounding and ties bite: tiny, huge, extreme, squares, multiples of 448 and neighbors; and at random
SIZES = [(1, 1), (1, 2), (2, 1), (1, 3000), (20000, 20), (20, 20000), (20000, 20000), (448, 448), (449, 448)]
SIZES += [(896, 448), (800, 1300), (1300, 800), (1000, 1000), (317, 317), (316, 317), (1792, 1344), (560, 448)]
SIZES += [(1250, 1000), (5, 4), (7, 5), (3, 2), (633, 634), (634, 634)]
SIZES += np.exp(np.random.default_rng(0).uniform(0, 9.9, (60, 2))).round().astype(int).tolist()


def test_grid_equals_the_slow_reference():
    limits = [(low, high, 448) for low in (1, 2, 3, 5, 7, 12) for high in range(low, 41)]
    for low, high, size in limits + [(1, 12, size) for size in (28, 112, 224, 336, 512)]:
        for width, height in SIZES:
            expected = slow_grid(width, height, low, high, size)
            found = DynamicTiling(low, high, size).grid(width, height)
            assert found == (*expected, expected != (1, 1)), (width, height, low, high)


def test_pixels_equal_the_slow_reference():
    """In a pipeline of MMEngine, too; and an image at the size of its grid is cut into the same tiles."""
    noise = np.random.default_rng(1).integers(0, 256, (700, 640, 3), np.uint8)
    images = [noise[:h, :w] for w, h in [(50, 30), (333, 100), (100, 333), (640, 480), (1, 1), (3, 700)]]
    for pixels, limits, thumbnail in product(images, ((1, 1), (1, 6), (1, 12), (4, 9)), (True, False)):
        rule, image = DynamicTiling(*limits, 64, thumbnail), Image.fromarray(pixels)
        tiles, again = rule(image), rule(resize_to_grid(image, rule))
        assert tiles.dtype == torch.uint8 and tiles.is_contiguous() and len(tiles) == rule.grid(*image.size).num_tiles
        np.testing.assert_array_equal(tiles.numpy(), slow_tiles(image, *limits, 64, thumbnail))
        whole = slice(-1 if rule.grid(*image.size).thumbnail else None)
        assert torch.equal(tiles[whole], again[whole])
        settings = dict(type="DynamicTiling", **vars(rule))
        for given in (image, pixels):
            results = Compose([settings])(dict(img=given, label=3))
            assert results["label"] == 3 and torch.equal(results["tiles"], tiles)
    image = Image.fromarray(data.coffee()).resize((1300, 100))  # by default at most 12 tiles, not 13
    np.testing.assert_array_equal(DynamicTiling()(image).numpy(), slow_tiles(image, 1, 12, 448, True))
    with pytest.raises(SettingError, match="RGB"):
        DynamicTiling()(image.convert("L"))


def test_limits():
    with pytest.raises(SettingError, match="min_tiles=3 and max_tiles=2"):
        DynamicTiling(3, 2)
    rule = DynamicTiling(4, 6, 112, False)
    assert [rule.limited(limit) for limit in (9, 6, 5)] == [rule, rule, DynamicTiling(4, 5, 112, False)]
    assert [rule.limited(limit) for limit in (2, 0)] == [DynamicTiling(most, most, 112, False) for most in (2, 1)]
