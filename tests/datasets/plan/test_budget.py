"""Tiles shared among images, and what is taken from a sample that is too long."""

import numpy as np
import pytest

from xtuner_plugins.datasets import DynamicTiling, SettingError
from xtuner_plugins.datasets.plan.budget import FRAME, TileBudget, first_limit, truncate
from xtuner_plugins.datasets.text.conversation import Encoded

TILING = DynamicTiling(max_tiles=6, tile_size=112)
WIDE, SQUARE, SMALL = (360, 120), (700, 700), (50, 50)  # 3, 4 and 1 tiles of at most 6


def test_images_share_the_limit_as_the_official_code_says_and_frames_are_one_tile():
    assert [first_limit(12, number) for number in (0, 1, 2, 5, 13)] == [12, 12, 6, 2, 1]
    budget = TileBudget(16, 10_000)
    assert first_limit(12, 13, "each") == 12 and budget.fit(TILING, [FRAME, WIDE, FRAME, SQUARE], 0) == [1, 3, 1, 3]
    assert [budget.count(TILING, size, 6) for size in (FRAME, WIDE, SMALL)] == [1, 4, 1]  # thumbnail included
    assert budget.tokens([]) == 0 and budget.tokens([4, 1]) == 5 * 16 + 2 * 2
    for length in (0, True):
        with pytest.raises(SettingError, match=f"max_length={length} can't be used; give a whole number, 1 or more"):
            TileBudget(16, length)


def test_tiles_are_taken_from_the_image_that_needs_them_least_until_the_sample_fits():
    budget, sizes = TileBudget(16, 1000), [WIDE, SQUARE, SMALL]
    for room in (400, 150, 120, 60, 10):
        limits = budget.fit(TILING, sizes, 1000 - room)
        counts = [budget.count(TILING, size, limit) for size, limit in zip(sizes, limits, strict=True)]
        assert budget.tokens(counts) <= room or counts == [1, 1, 1]
        assert limits == [2] * 3 or room < 400  # everything fits into that
    # Under a limit of 12, 6 each: 43,200 / 4 source pixels per tile, and 490,000 / 5
    tiling, whole = DynamicTiling(max_tiles=12, tile_size=112), budget.tokens([4, 5])
    assert [budget.fit(tiling, sizes[:2], 1000 + more - whole) for more in (0, 1)] == [[6, 6], [2, 6]]


def test_the_end_is_cut_off_but_never_inside_a_span():
    sample = Encoded(np.arange(7), np.array([-100, 7, 8, -100, -100, -100, 9]), ((3, 3),))
    for max_length, length, images in ((7, 7, 1), (6, 6, 1), (5, 3, 0), (3, 3, 0), (2, 2, 0)):
        cut, kept = truncate(sample, max_length)
        assert kept == len(cut.spans) == images and cut.input_ids.tolist() == list(range(length))
        assert cut.labels.tolist() == sample.labels[:length].tolist()
    assert truncate(sample, 1) is None  # nothing would be learned
    assert truncate(Encoded(np.arange(4), np.array([-100, -100, -100, 7]), ((0, 2),)), 3) is None
