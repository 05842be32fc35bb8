"""Three ways to fill the packs of a window: budgets hold, nothing is lost, seeds decide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtuner_plugins.datasets.plan.bin_packing import BestFit, RandomFill, Redeal, Sizes

WAYS = [BestFit(0.5, 0.2), BestFit(0, 0), Redeal()]
ALIKE = [RandomFill(0), RandomFill(0.3)]  # for samples with the same number of tiles
SAMPLE = st.tuples(st.integers(1, 100), st.integers(0, 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(SAMPLE, min_size=1, max_size=300), st.booleans(), st.booleans(), st.integers(0, 99))
def test_a_window_gives_every_sample_to_a_pack_or_to_the_next_window(data, alike, last, seed):
    tokens, tiles = np.array(data).T
    tiles = np.full_like(tiles, tiles[0]) if alike else tiles
    sizes, samples = Sizes(tokens, tiles, 100, 9), range(0, len(tokens), 2)
    for way in WAYS + ALIKE * alike:
        packs, left = way.pack(samples, sizes, seed, last)
        assert sorted(left + [sample for pack in packs for sample in pack]) == list(samples) and not (last and left)
        assert all(pack and tokens[pack].sum() <= 100 and tiles[pack].sum() <= 9 for pack in packs)
        assert way.pack(samples, sizes, seed, last)[0] == packs


FITS = [  # tokens, tiles, their budgets; the samples of each pack
    # In decreasing order: 60 and 50 open packs; 40 closes the first, 30 and 20 the second
    ([20, 30, 40, 50, 60], [0] * 5, (100, 0), [[0, 1, 3], [2, 4]]),
    # The third fits into both open packs: 1 tile (of 4) stays empty in the first, 40 tokens (of 100) in the second
    ([90, 50, 10], [2, 3, 1], (100, 4), [[0, 2], [1]]),
    # Tokens would fit all into one pack, the tiles fill two
    ([10, 10, 9, 9], [3, 3, 1, 1], (100, 4), [[0, 2], [1, 3]]),
]


def test_best_fit_wastes_least_of_both_budgets_and_leaves_the_emptiest_packs():
    for tokens, tiles, budgets, expected in FITS:
        sizes = Sizes(np.array(tokens), np.array(tiles), *budgets)
        packs, left = BestFit(0, 0).pack(range(len(tokens)), sizes, seed=0, last=True)
        assert sorted(sorted(pack) for pack in packs) in (expected, [[0, 3], [1, 2]]) and left == []
    tokens = np.array([*[100] * 18, 30, 30])
    packs, left = BestFit(0, 0).pack(range(20), Sizes(tokens, 0 * tokens, 100, 0), seed=0, last=False)
    assert sorted(left) == [18, 19] and len(packs) == 18  # a tenth of 19 packs, rounded down
    # The scarcer budget weighs more: one pack of tokens, four packs of tiles.
    per_token, per_tile = Sizes(np.array([50, 50]), np.array([4, 4]), 100, 2).weights()
    assert per_token * 100 == pytest.approx(0.2) and per_tile * 2 == pytest.approx(0.8)
