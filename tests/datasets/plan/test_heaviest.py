import numpy as np

from xtuner_plugins.datasets.bad_samples import FILLER_INDEX
from xtuner_plugins.datasets.plan.heaviest import heaviest

TOKENS, TILES = np.array([5, 4, 3, 9, 1, 8], np.int32), np.array([1, 0, 3, 0, 7, 1], np.int32)


def test_the_sum_over_samples_counts():
    assert heaviest([[0, 1], [2, 5], [3]], TOKENS, TILES) == [2, 5]


def test_tiles_decide_between_equals():
    assert heaviest([[0, 1], [3], [5, 4], [1]], TOKENS, TILES) == [5, 4]  # 9 tokens each


def test_a_filler_weighs_nothing():
    assert heaviest([[FILLER_INDEX], [4], [FILLER_INDEX, 1]], TOKENS, TILES) == [FILLER_INDEX, 1]


def test_sums_are_of_64_bits():
    assert heaviest([[0, 0], [1]], np.array([2**31 - 1, 5], np.int32), np.zeros(2, np.int32)) == [0, 0]
