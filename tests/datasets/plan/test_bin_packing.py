"""Two ways to fill the packs of a window: budgets hold, nothing is lost, seeds decide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtuner_plugins.datasets.plan.bin_packing import BestFit, RandomFill, Sizes


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 9)), min_size=1, max_size=300),
    alike=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_window_gives_every_sample_to_a_pack_or_to_the_next_window(data, alike, last, seed):
    tokens, tiles = np.array(data).T
    ways = [BestFit(0.5, 0.2), BestFit(0, 0)]
    if alike:
        tiles = np.full_like(tiles, tiles[0])
        ways += [RandomFill(0), RandomFill(0.3)]
    samples = range(0, len(tokens), 2)
    for way in ways:
        packs, left = way.pack(samples, Sizes(tokens, tiles, 100, 9), seed, last)
        assert sorted(left + [sample for pack in packs for sample in pack]) == list(samples) and not (last and left)
        assert all(pack and tokens[pack].sum() <= 100 and tiles[pack].sum() <= 9 for pack in packs)


def test_the_scarcer_budget_weighs_more():
    tokens, tiles = np.array([50, 50]), np.array([4, 4])
    per_token, per_tile = Sizes(tokens, tiles, 100, 2).weights()  # one pack of tokens, four packs of tiles
    assert per_token * 100 == pytest.approx(0.2) and per_tile * 2 == pytest.approx(0.8)
    assert Sizes(tokens, 0 * tiles, 100, 0).weights() == (pytest.approx(0.01), 0)


FITS = [  # tokens, tiles, their budgets; the samples of each pack
    # In decreasing order: 60 and 50 open packs; 40 closes the first, 30 and 20 the second
    ([20, 30, 40, 50, 60], [0] * 5, (100, 0), [[0, 1, 3], [2, 4]]),
    # The third fits into both open packs: 1 tile (of 4) stays empty in the first, 40 tokens (of 100) in the second
    ([90, 50, 10], [2, 3, 1], (100, 4), [[0, 2], [1]]),
    # Tokens would fit all into one pack, the tiles fill two
    ([10, 10, 9, 9], [3, 3, 1, 1], (100, 4), [[0, 2], [1, 3]]),
]


def test_best_fit_wastes_least_of_both_budgets():
    for tokens, tiles, budgets, expected in FITS:
        sizes = Sizes(np.array(tokens), np.array(tiles), *budgets)
        packs, left = BestFit(0, 0).pack(range(len(tokens)), sizes, seed=0, last=True)
        found = sorted(sorted(pack) for pack in packs)
        assert found in (expected, [[0, 3], [1, 2]]) and left == []


def test_the_emptiest_packs_wait_for_the_next_window():
    tokens = np.array([*[100] * 18, 30, 30])
    packs, left = BestFit(0, 0).pack(range(20), Sizes(tokens, 0 * tokens, 100, 0), seed=0, last=False)
    assert sorted(left) == [18, 19] and len(packs) == 18  # a tenth of 19 packs, rounded down


def test_seeds_decide_and_only_a_thrifty_fill_is_slow():
    tokens = np.random.default_rng(0).integers(1, 60, 3000)
    sizes = Sizes(tokens, 0 * tokens, 100, 0)
    for way, is_slow in ((BestFit(0, 0.2), False), (RandomFill(0), False), (RandomFill(0.3), True)):
        first, again, other = (way.pack(range(3000), sizes, seed, last=True)[0] for seed in (1, 1, 2))
        assert first == again != other and way.slow == is_slow
