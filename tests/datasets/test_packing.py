"""Packs, plans and batches: budgets kept, every sample once, resumed anywhere, borders right."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import Runner

from xtuner_plugins.datasets import MultimodalDataset, SettingError, collate_packed, packing
from xtuner_plugins.datasets.bad_samples import FILLER, FILLER_INDEX
from xtuner_plugins.datasets.bin_packing import BestFit, RandomFill, Sizes, _best_fit
from xtuner_plugins.datasets.packing import arrange, efficiency, pack_samples
from xtuner_plugins.datasets.samplers import PackBatchSampler, PlanSampler


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
    for ranks in (8, 64):
        assert efficiency(arrange(packs, ranks, 0), 8192, ranks)["tile_imbalance"] <= 1.02


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


def scarce(num):
    """Up to twelve tiles: two pictures of 13 leave a gap that few samples are short enough to fill."""
    rng = np.random.default_rng(0)
    tiles = rng.choice([0, 1, 3, 7, 13], num, p=[0.06, 0.12, 0.04, 0.34, 0.44])
    text = np.clip(rng.lognormal(5.2, 0.6, num), 60, 2000).astype(int) * np.where(tiles == 0, 4, 1)
    return np.minimum(text + tiles * 256 + 2 * (tiles > 0), 4096), tiles


def test_sparing_short_samples_fills_packs_that_few_can_close():
    tokens, tiles = scarce(12_000)
    order, sizes = np.random.default_rng(0).permutation(12_000), Sizes(tokens, 0 * tiles, 8192, 0)
    thrifty, plain = (len(packing._pack_windows(order, sizes, 0, RandomFill(thrift))) for thrift in (0.3, 0))
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


@pytest.fixture
def dataset(data_base, write_data, make_picture, qa, tmp_path):
    """Forty records, two of them broken, one too long."""
    for name, size in {"a.png": (100, 90), "b.png": (360, 120), "c.png": (120, 360)}.items():
        folder = make_picture(name, *size)
    records = [qa(f"Q{i}?", f"A{i}. " * (1 + i % 5), image="abc"[i % 3] + ".png") for i in range(25)]
    records += [qa(f"T{i}?", f"A{i}. " * (1 + i % 9)) for i in range(12)]
    records += [qa("word " * 500, "Late."), qa(image="none.png"), {"text": 1}]
    return MultimodalDataset(
        data_base, write_data(records), folder, max_length=300, on_bad_sample="skip", cache_dir=str(tmp_path / "cache")
    )


def ranks(dataset, number, packed, **options):
    """One sampler for each of several ranks."""
    samplers = []
    for rank in range(number):
        sampler = PlanSampler(dataset, seed=3, **options)
        sampler.rank, sampler.num_ranks = rank, number
        sampler.seek(0)
        samplers.append(PackBatchSampler(sampler, max_tokens=350) if packed else sampler)
    return samplers


def flat(step):
    return step if isinstance(step, list) else [step]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("group_by", [None, "length", "modality"])
@pytest.mark.parametrize("number", [1, 3])
def test_every_sample_once_an_epoch_over_all_ranks(dataset, packed, group_by, number):
    everything = set(range(37)) if packed or group_by else set(range(40))
    orders = []
    for epoch in (0, 1):
        samplers = ranks(dataset, number, packed, group_by=group_by, group_size=4)
        for sampler in samplers:
            sampler.seek(epoch)
        steps = [list(sampler) for sampler in samplers]
        assert (
            len({len(part) for part in steps})
            == 1
            == len({len(part) - sampler.num_steps(epoch) == 0 for part, sampler in zip(steps, samplers, strict=True)})
        )
        taken = [index for part in steps for step in part for index in flat(step) if index != FILLER_INDEX]
        assert len(taken) == len(set(taken)) and set(taken) == everything
        orders.append(taken)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("packed", [False, True])
def test_resuming_with_other_ranks_goes_on_where_it_stopped(dataset, packed):
    together = ranks(dataset, 2, packed)
    steps = [list(sampler) for sampler in together]
    taken = [tuple(flat(step)) for both in zip(*steps, strict=True) for step in both]
    cell = together[0].sampler.cell if packed else 2
    after = ranks(dataset, 3, packed)
    for sampler in after:
        sampler.seek(0, 6, cell)
    rest = [tuple(flat(step)) for steps in zip(*after, strict=True) for step in steps]
    assert [step for step in taken[:6] + rest if step != (FILLER_INDEX,)] == [
        step for step in taken if step != (FILLER_INDEX,)
    ]


def test_groups_are_of_alike_length_and_kind(dataset):
    sampler = PlanSampler(dataset, seed=0, group_by="modality", group_size=4)
    tokens, tiles, _ = dataset.layout()
    order = sampler.order(0)
    for first in range(0, 32, 4):
        group = order[first : first + 4]
        assert len(set(tiles[group] > 0)) == 1
    shuffled = PlanSampler(dataset, seed=0).order(0)
    spread = [np.ptp(tokens[plan[:32]].reshape(-1, 4), axis=1).mean() for plan in (order, shuffled)]
    assert spread[0] < spread[1] / 2


def test_a_packed_batch_through_mmengine(dataset):
    loader = Runner.build_dataloader(
        dict(
            dataset=dataset,
            sampler=dict(type="PlanSampler"),
            batch_size=1,
            num_workers=1,
            batch_sampler=dict(type="PackBatchSampler", max_tokens=600),
            collate_fn=dict(type="collate_packed"),
        ),
        seed=1,
    )
    seen = 0
    for batch in loader:
        total = batch["input_ids"].shape[1]
        borders = batch["cu_seqlens"].tolist()
        assert batch["cu_seqlens"].dtype == torch.int32 and borders[0] == 0 and borders[-1] == total <= 600
        assert batch["position_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (1, total)
        for first, last in zip(borders, borders[1:], strict=False):
            assert batch["position_ids"][0, first:last].tolist() == list(range(last - first))
            assert batch["labels"][0, first] == -100
        assert batch["max_seqlen"] == max(b - a for a, b in zip(borders, borders[1:], strict=False))
        assert len(batch["sources"]) == len(borders) - 1 == len(batch["num_tiles"])
        assert batch["num_tiles"].sum() == len(batch["tiles"])
        seen += len(batch["sources"])
    assert seen == 37


def test_a_pack_holds_its_samples_unchanged(dataset):
    samples = [dataset[0], dataset[30], dataset[1]]
    batch = collate_packed(samples, pad_token_id=7, pad_to=500)
    borders = batch["cu_seqlens"].tolist()
    for sample, first, last in zip(samples, borders, borders[1:], strict=False):
        assert torch.equal(batch["input_ids"][0, first:last], sample["input_ids"])
        assert torch.equal(batch["labels"][0, first + 1 : last], sample["labels"][1:])
    assert batch["input_ids"].shape[1] == 500 == borders[-1] and len(borders) == 5
    assert not batch["attention_mask"][0, borders[3] :].any() and (batch["input_ids"][0, borders[3] :] == 7).all()
    assert (batch["labels"][0, borders[3] :] == -100).all()


def test_left_out_samples_never_reach_the_model(dataset):
    from xtuner_plugins.datasets import collate

    batch = collate([dataset[0], dataset[38], dataset[39]])
    assert len(batch["input_ids"]) == 1 and len(batch["dropped"]) == 2
    nothing = collate([dataset[38]])
    assert nothing["sources"] == [FILLER] and (nothing["labels"] == -100).all()
    assert nothing["tiles"].shape == (0, 3, 112, 112)
    assert collate([dataset[FILLER_INDEX]])["sources"] == [FILLER]


def test_wrong_settings_of_samplers(dataset):
    with pytest.raises(SettingError, match="batch_size"):
        PackBatchSampler(PlanSampler(dataset, seed=0), batch_size=2)
    with pytest.raises(SettingError, match="PlanSampler"):
        PackBatchSampler([1, 2])
    with pytest.raises(SettingError, match="group_by"):
        PlanSampler(dataset, seed=0, group_by="size")
