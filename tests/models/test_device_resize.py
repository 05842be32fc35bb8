"""Bit for bit what Pillow makes, in either order of the passes."""

import numpy as np
import pytest
import torch
from PIL import Image

from xtuner_plugins.models import device_resize
from xtuner_plugins.models.device_resize import cut_images, fixed_point_weights, resize_like_pillow


def noise(width, height, seed=0, binary=False):
    """Random bytes, or only 0 and 255, which make the filter overshoot and clip."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 2, (height, width, 3), np.uint8) * 255
        if binary
        else rng.integers(0, 256, (height, width, 3), np.uint8)
    )


def to_chw(array):
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def pillow(array, width, height):
    return to_chw(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))


SIZES = [
    (7, 5, 11, 13),
    (100, 90, 40, 40),
    (90, 100, 448, 336),
    (1, 1, 56, 56),
    (300, 2, 56, 112),
    (2, 300, 112, 56),
    (640, 480, 448, 448),
    (333, 500, 448, 448),
    (500, 500, 500, 448),
    (500, 500, 448, 500),
    (64, 64, 64, 64),
    (3000, 40, 56, 56),
    (40, 3000, 56, 56),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("binary", [False, True])
def test_equals_pillow(size, binary):
    width, height, to_width, to_height = size
    array = noise(width, height, binary=binary)
    assert torch.equal(resize_like_pillow(to_chw(array), to_width, to_height), pillow(array, to_width, to_height))


def sizes_around_the_rules(num: int, seed: int):
    """(width, height, new width, new height) within a pixel or two of where Pillow's rules tip, and anywhere."""
    rng = np.random.default_rng(seed)
    for case in range(num):
        to_width, to_height = (int(x) for x in rng.integers(1, 70, 2))
        width, height = max(1, to_width + int(rng.integers(-15, 40))), to_height + int(rng.integers(-9, 90))
        if case % 4 == 0:  # twice the shrink of the width (Pillow 13)
            height = to_height + 2 * (width - to_width) + int(rng.integers(-2, 3))
        elif case % 4 == 1:  # a hundred times as high as wide (12.2 and 12.3), any height or nearly the same
            width = int(rng.integers(1, 12))
            height = 100 * width + int(rng.integers(-3, 4))
            to_height = int(rng.choice([height + rng.integers(-3, 4), rng.integers(1, height + 30)]))
        elif case % 4 == 2:  # as high, and 13 would run the other pass first
            width = int(rng.integers(2, 12))
            height, to_width = 100 * width + int(rng.integers(1, 20)), int(rng.integers(1, width + 1))
            to_height = height - int(rng.integers(0, 2 * (width - to_width) + 3))
        yield width, max(1, height), to_width, max(1, to_height)


def test_equals_pillow_over_random_sizes():
    """Also where the rules for the order of passes tip; `benchmarks/pillow_versions.py` runs this with each Pillow."""
    for seed, size in enumerate(sizes_around_the_rules(600, seed=0)):
        width, height, to_width, to_height = size
        array = noise(width, height, seed, binary=seed % 2 == 0)
        result = resize_like_pillow(to_chw(array), to_width, to_height)
        assert torch.equal(result, pillow(array, to_width, to_height)), size


def plain_pass(array, size_out):
    """One pass over the columns in Python's own integers."""
    first, weights = fixed_point_weights(array.shape[1], size_out)
    out = np.empty((array.shape[0], size_out, 3), np.uint8)
    for column in range(size_out):
        pixels = array[:, first[column] : first[column] + weights.shape[1]].astype(np.int64)
        total = np.einsum("hwc,w->hc", pixels, weights[column, : pixels.shape[1]]) + (1 << 21)
        out[:, column] = np.clip(total >> 22, 0, 255)
    return out


@pytest.mark.parametrize("vertical", [False, True])
def test_both_orders_equal_plain_integers(vertical):
    """One of the two is the installed Pillow's, the other that of a Pillow of the other kind."""
    array = noise(90, 200, binary=True)
    passes = [lambda a: plain_pass(a, 50), lambda a: plain_pass(a.swapaxes(0, 1), 60).swapaxes(0, 1)]
    expected = array
    for step in reversed(passes) if vertical else passes:
        expected = step(expected)
    assert torch.equal(resize_like_pillow(to_chw(array), 50, 60, vertical=vertical), to_chw(expected))
    other = resize_like_pillow(to_chw(array), 50, 60, vertical=not vertical)
    assert not torch.equal(other, to_chw(expected))  # the order does matter here


def test_digits_stay_exact_for_any_shrink():
    """Every sum of digit times byte fits float32's integers, for shrinks from none to a thousandfold."""
    for size_in, size_out in [(10, 448), (448, 447), (5000, 448), (40_000, 448), (100_000, 56)]:
        first, last, bits, digits = device_resize._digit_matrices(size_in, size_out, 0, min(size_out, 64))
        rebuilt = sum(digit.astype(np.int64) << (bits * place) for place, digit in enumerate(digits))
        assert max(np.abs(digit).sum(1).max() for digit in digits) * 255 < 2**24
        begins, weights = fixed_point_weights(size_in, size_out)
        assert rebuilt.sum() == weights[: min(size_out, 64)].sum() and first == begins[0]


def test_images_are_cut_between_the_tiles_that_workers_cut():
    from xtuner_plugins.datasets.images.tiling import DynamicTiling, UncutImage

    rule = DynamicTiling(max_tiles=6, tile_size=56)
    arrays = [noise(150, 60, 1), noise(50, 50, 2), noise(60, 170, 3)]
    whole = [rule(Image.fromarray(array)) for array in arrays]
    ready = [torch.full((2, 3, 56, 56), 7, dtype=torch.uint8), torch.full((1, 3, 56, 56), 9, dtype=torch.uint8)]
    expected = torch.cat([ready[0], whole[0], whole[1], ready[1], whole[2]])
    firsts = [2, 2 + len(whole[0]), 3 + len(whole[0]) + len(whole[1])]
    uncut = [
        UncutImage(rule.grid(array.shape[1], array.shape[0]), first, array.shape[1], array.shape[0])
        for array, first in zip(arrays, firsts, strict=True)
    ]
    images = [torch.from_numpy(array) for array in arrays]
    assert torch.equal(cut_images(torch.cat(ready), images, uncut), expected)
    empty = torch.empty(0, 3, 56, 56, dtype=torch.uint8)
    assert torch.equal(cut_images(empty, [], []), empty)


@pytest.mark.parametrize("photo", ["astronaut", "coffee"])
def test_photographs_through_the_matrix_products(photo, monkeypatch):
    from skimage import data

    from xtuner_plugins.datasets.images.tiling import DynamicTiling, UncutImage

    monkeypatch.setattr(device_resize, "_resize", resize_like_pillow)  # what other devices than the CPU take
    array = getattr(data, photo)()
    rule = DynamicTiling(max_tiles=6, tile_size=224)
    height, width, _ = array.shape
    uncut = [UncutImage(rule.grid(width, height), 0, width, height)]
    tiles = cut_images(torch.empty(0, 3, 224, 224, dtype=torch.uint8), [torch.from_numpy(array)], uncut)
    assert torch.equal(tiles, rule(Image.fromarray(array)))


@pytest.mark.gpu
def test_equals_pillow_on_the_gpu():
    for allow in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allow
        for width, height, to_width, to_height in SIZES:
            array = noise(width, height, binary=True)
            result = resize_like_pillow(to_chw(array).cuda(), to_width, to_height)
            assert torch.equal(result.cpu(), pillow(array, to_width, to_height))
        assert torch.backends.cuda.matmul.allow_tf32 is allow
    torch.backends.cuda.matmul.allow_tf32 = False
