"""Packs: budgets kept, every sample once, hardly anything left empty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtuner_plugins.datasets import SettingError
from xtuner_plugins.datasets.plan import packing
from xtuner_plugins.datasets.plan.bin_packing import RandomFill, Sizes, _best_fit
from xtuner_plugins.datasets.plan.packing import arrange, efficiency, pack_samples


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 9)), min_size=1, max_size=200),
    max_tiles=st.none() | st.integers(9, 30),
    seed=st.integers(0, 99),
)
def test_budgets_hold_and_every_sample_comes_once(data, max_tiles, seed):
    tokens, tiles = np.array(data).T
    indices = np.arange(len(data)) * 3
    packs = pack_samples(indices, tokens, tiles, max_tokens=100, max_tiles=max_tiles, seed=seed)
    assert sorted(packs.order.tolist()) == indices.tolist()
    for number in range(len(packs)):
        members = packs[number] // 3
        assert packs.tokens[number] == tokens[members].sum() <= 100
        assert packs.tiles[number] == tiles[members].sum() <= (max_tiles or 10**9)


def mixture(num, seed=0):
    """Lengths like those of an instruction mixture with at most six tiles."""
    rng = np.random.default_rng(seed)
    tiles = rng.choice([0, 1, 5, 7], num, p=[0.06, 0.14, 0.1, 0.7])
    text = np.clip(rng.lognormal(5.2, 0.7, num), 60, 2000).astype(int) * np.where(tiles == 0, 4, 1)
    return np.minimum(text + tiles * 256 + 2 * (tiles > 0), 8192), tiles


def test_packs_are_full_and_ranks_alike():
    tokens, tiles = mixture(20_000)
    packs = pack_samples(np.arange(20_000), tokens, tiles, max_tokens=8192)
    assert efficiency(packs, 8192)["padded"] <= 0.001


@pytest.mark.parametrize("max_tiles", [None, 26])
def test_ranks_wait_little_for_each_other(max_tiles):
    """As work goes with squared tokens, tokens and tiles, for a large and a small LLM; and tokens alone are alike."""
    tokens, tiles = mixture(20_000)
    for rates in ((2 * 36 * 4096, 14e9, 0.6e12), (2 * 24 * 896, 0.7e9, 0.6e12)):
        packs = pack_samples(np.arange(20_000), tokens, tiles, max_tokens=8192, max_tiles=max_tiles, work_rates=rates)
        work = rates[0] * tokens**2 + rates[1] * tokens + rates[2] * tiles
        for number in (0, 7, len(packs) - 1):
            assert packs.work[number] == pytest.approx(work[packs[number]].sum())
        assert efficiency(arrange(packs, 8, 0), 8192, 8)["waiting"] <= 0.005
        assert efficiency(arrange(packs, 64, 0), 8192, 64)["waiting"] <= 0.02


def test_few_small_numbers_of_tiles_fill_packs_exactly():
    """Shares, tiles and lengths as in ai2d, docvqa, chartqa and synthdog: the published method leaves .0005 empty."""
    rng = np.random.default_rng(0)
    tiles = rng.choice([1, 3, 4, 5], 20_000, p=[0.09, 0.34, 0.01, 0.56])
    tokens = 256 * tiles + np.clip(rng.lognormal(4.3, 0.8, 20_000), 40, 1200).astype(int)
    packs = pack_samples(np.arange(20_000), tokens, tiles, max_tokens=8192, max_tiles=26)
    assert len(packs) <= 1.001 * tiles.sum() / 26


def test_arranging_keeps_the_packs_and_leaves_the_order_random():
    tokens, tiles = mixture(20_000)
    packs = pack_samples(np.arange(20_000), tokens, tiles, max_tokens=8192, max_tiles=26)
    known = sorted(packs[number].tolist() for number in range(len(packs)))
    for ranks in (1, 3, 64, len(packs) + 1):
        arranged = arrange(packs, ranks, 0)
        assert sorted(arranged[number].tolist() for number in range(len(packs))) == known
        for number in (0, 1, len(packs) - 1):
            members = arranged[number]
            assert arranged.tokens[number] == tokens[members].sum() and arranged.tiles[number] == tiles[members].sum()
    tiles = arrange(packs, 8, 0).tiles[: len(packs) // 8 * 8].reshape(-1, 8).mean(1)
    assert abs(np.corrcoef(tiles[1:], tiles[:-1])[0, 1]) < 0.1  # what a step has to do says nothing of the next


MIXTURES = {
    "captions": lambda num: (np.random.default_rng(1).integers(290, 360, num), np.ones(num, int)),
    "six tiles": lambda num: mixture(num),
    "twelve tiles": lambda num: scarce(num),
    "texts": lambda num: (np.random.default_rng(1).integers(20, 4000, num), np.zeros(num, int)),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_packs_are_no_worse_than_best_fit_decreasing(name):
    tokens, tiles = MIXTURES[name](12_000)
    sizes = Sizes(tokens, tiles, 8192, 26)
    rival = min(
        len(_best_fit(order.tolist(), tokens[order].tolist(), tiles[order].tolist(), sizes))
        for order in (np.argsort(-tokens), np.argsort(-tokens / 8192 - tiles / 26))
    )
    assert len(pack_samples(np.arange(12_000), tokens, tiles, max_tokens=8192, max_tiles=26)) <= rival


def scarce(num):
    """Up to twelve tiles: two images of 13 leave a gap that few samples are short enough to fill."""
    rng = np.random.default_rng(0)
    tiles = rng.choice([0, 1, 3, 7, 13], num, p=[0.06, 0.12, 0.04, 0.34, 0.44])
    text = np.clip(rng.lognormal(5.2, 0.6, num), 60, 2000).astype(int) * np.where(tiles == 0, 4, 1)
    return np.minimum(text + tiles * 256 + 2 * (tiles > 0), 4096), tiles


def test_sparing_short_samples_fills_packs_that_few_can_close():
    tokens, tiles = scarce(12_000)
    order, sizes = np.random.default_rng(0).permutation(12_000), Sizes(tokens, 0 * tiles, 8192, 0)
    thrifty, plain = (len(packing._pack_windows(order, sizes, 0, RandomFill(thrift))[1]) for thrift in (0.3, 0))
    assert thrifty < 0.9992 * plain


def test_a_slow_way_is_taken_only_where_it_is_worth_waiting(monkeypatch):
    tokens, tiles = scarce(3000)
    packs = {}
    for worth in (1.0, 1.1):
        monkeypatch.setattr(packing, "WORTH_WAITING", worth)
        packs[worth] = pack_samples(np.arange(3000), tokens, tiles, max_tokens=8192)
    assert len(packs[1.0]) < len(packs[1.1])


def test_order_is_decided_by_the_seed_alone():
    tokens, tiles = mixture(500)
    runs = [pack_samples(np.arange(500), tokens, tiles, max_tokens=8192, seed=seed).order for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).any()


def test_a_sample_that_fits_nowhere_is_named():
    with pytest.raises(SettingError, match="sample 5 has 101 tokens"):
        pack_samples(np.array([4, 5]), np.array([1, 101]), np.array([0, 0]), max_tokens=100)
