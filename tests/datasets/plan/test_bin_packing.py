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


def test_best_fit_takes_the_fullest_pack_that_has_room():
    """In decreasing order: 60 and 50 open packs; 40 closes the first, 30 and 20 the second."""
    tokens = np.array([20, 30, 40, 50, 60])
    packs, left = BestFit(0, 0).pack(range(5), Sizes(tokens, np.zeros(5, int), 100, 0), seed=0, last=True)
    assert sorted(sorted(tokens[pack].tolist()) for pack in packs) == [[20, 30, 50], [40, 60]] and left == []


def test_best_fit_wastes_least_of_both_budgets():
    """The third fits into both open packs: 1 tile (of 4) stays empty in the first, 40 tokens (of 100) in the second."""
    sizes = Sizes(np.array([90, 50, 10]), np.array([2, 3, 1]), 100, 4)
    packs, _ = BestFit(0, 0).pack(range(3), sizes, seed=0, last=True)
    assert sorted(sorted(pack) for pack in packs) == [[0, 2], [1]]


def test_best_fit_keeps_both_budgets():
    """Tokens would fit all into one pack, the tiles fill two."""
    packs, _ = BestFit(0.5, 0).pack(range(4), Sizes(np.full(4, 10), np.array([3, 3, 1, 1]), 100, 4), seed=0, last=True)
    assert sorted(sorted(pack) for pack in packs) in ([[0, 2], [1, 3]], [[0, 3], [1, 2]])


def test_the_emptiest_packs_wait_for_the_next_window():
    tokens = np.array([*[100] * 18, 30, 30])
    packs, left = BestFit(0, 0).pack(range(20), Sizes(tokens, 0 * tokens, 100, 0), seed=0, last=False)
    assert sorted(left) == [18, 19] and len(packs) == 18  # a tenth of 19 packs, rounded down


@pytest.mark.parametrize("way", [BestFit(0, 0.2), RandomFill(0), RandomFill(0.3)], ids=str)
def test_seeds_decide(way):
    tokens = np.random.default_rng(0).integers(1, 60, 3000)
    sizes = Sizes(tokens, 0 * tokens, 100, 0)
    first, again, other = (way.pack(range(3000), sizes, seed, last=True)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_only_a_thrifty_fill_is_slow():
    assert RandomFill(0.3).slow and not RandomFill(0).slow and not BestFit.slow
