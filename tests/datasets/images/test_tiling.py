"""Grid and pixels against a second implementation, written plainly from the published description."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS
from PIL import Image
from skimage import data

from xtuner_plugins.datasets.images.tiling import DynamicTiling, resize_to_grid
from xtuner_plugins.errors import SettingError


@cache
def slow_ratios(min_num, max_num):
    ratios = set(
        (i, j)
        for n in range(min_num, max_num + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if min_num <= i * j <= max_num
    )
    return sorted(ratios, key=lambda ratio: ratio[0] * ratio[1])


def slow_grid(width, height, min_num, max_num, size):
    """The published rule, step by step: all ratios, sorted by area; closest wins; a tie goes by area."""
    best, closest = (1, 1), float("inf")
    for i, j in slow_ratios(min_num, max_num):
        distance = abs(width / height - i / j)
        if distance < closest or (distance == closest and width * height > 0.5 * size * size * i * j):
            best, closest = (i, j), distance
    return best


def slow_tiles(image, min_num, max_num, size, thumbnail):
    """Pillow resize, one crop a tile, in reading order."""
    cols, rows = slow_grid(*image.size, min_num, max_num, size)
    whole = image.resize((cols * size, rows * size))
    crops = [
        whole.crop((c * size, r * size, c * size + size, r * size + size)) for r in range(rows) for c in range(cols)
    ]
    if thumbnail and len(crops) != 1:
        crops.append(image.resize((size, size)))
    return np.stack([np.array(crop).transpose(2, 0, 1) for crop in crops])


def sizes():
    """Sizes where rounding and ties bite: tiny, huge, extreme, squares, multiples of 448 and neighbors."""
    fixed = [(1, 1), (1, 2), (2, 1), (1, 3000), (20000, 20), (20, 20000), (20000, 20000), (448, 448), (449, 448)]
    fixed += [(896, 448), (800, 1300), (1300, 800), (1000, 1000), (317, 317), (316, 317), (1792, 1344), (560, 448)]
    fixed += [(1250, 1000), (5, 4), (7, 5), (3, 2), (633, 634), (634, 634)]
    rng = np.random.default_rng(0)
    return fixed + [tuple(int(x) for x in np.exp(rng.uniform(0, 9.9, 2)) + 0.5) for _ in range(60)]


def test_grid_equals_the_slow_reference():
    for min_num in (1, 2, 3, 5, 7, 12):
        for max_num, (width, height) in product(range(min_num, 41), sizes()):
            expected = slow_grid(width, height, min_num, max_num, 448)
            found = DynamicTiling(min_num, max_num).grid(width, height)
            assert found[:2] == expected, (width, height, min_num, max_num)
            assert found.thumbnail == (expected != (1, 1))
    for size in (28, 112, 224, 336, 512):
        for width, height in sizes():
            assert DynamicTiling(tile_size=size).grid(width, height)[:2] == slow_grid(width, height, 1, 12, size)


def test_pixels_equal_the_slow_reference():
    for width, height in [(50, 30), (333, 100), (100, 333), (640, 480), (1, 1), (3, 700)]:
        image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))
        for limits, thumbnail in product(((1, 1), (1, 6), (1, 12), (4, 9)), (True, False)):
            rule = DynamicTiling(*limits, 64, thumbnail)
            tiles = rule(image)
            assert tiles.dtype == torch.uint8 and tiles.is_contiguous()
            np.testing.assert_array_equal(tiles.numpy(), slow_tiles(image, *limits, 64, thumbnail))
            assert len(tiles) == rule.grid(width, height).num_tiles
    image = Image.fromarray(data.coffee())
    np.testing.assert_array_equal(DynamicTiling()(image).numpy(), slow_tiles(image, 1, 12, 448, True))


def test_in_a_pipeline_of_mmengine():
    image = Image.effect_noise((300, 100), 80).convert("RGB")
    tiling = dict(type="DynamicTiling", max_tiles=6, tile_size=56)
    expected = TRANSFORMS.build(tiling)(image)
    for found in (image, np.asarray(image)):
        results = Compose([tiling])(dict(img=found, label=3))
        assert results["label"] == 3 and torch.equal(results["tiles"], expected)
    with pytest.raises(SettingError, match="RGB"):
        Compose([tiling])(dict(img=np.zeros((10, 10), np.uint8)))


def test_impossible_limits_and_images_are_refused():
    for limits in [(0, 12), (3, 2), (1, 0), (1, 10**6), (1.0, 12), (1, "12")]:
        with pytest.raises(SettingError, match="min_tiles"):
            DynamicTiling(*limits)
    with pytest.raises(SettingError, match="0x5"):
        DynamicTiling().grid(0, 5)


def test_lower_limits():
    rule = DynamicTiling(max_tiles=6, tile_size=56)
    assert [rule.limited(limit).max_tiles for limit in (9, 6, 2, 0)] == [6, 6, 2, 1]
    assert DynamicTiling(min_tiles=4).limited(2).min_tiles == 2


def test_an_image_at_the_size_of_its_grid_is_cut_into_the_same_tiles():
    tiling = DynamicTiling(tile_size=28)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 61, 3), dtype=np.uint8))
    resized = resize_to_grid(image, tiling)
    assert resized.size == (56, 28)
    assert torch.equal(tiling(resized)[:2], tiling(image)[:2])
