"""Plans of epochs: every sample once over all ranks, resumed anywhere."""

import pytest

from xtuner_plugins.datasets import PackBatchSampler, PlanSampler, SettingError
from xtuner_plugins.datasets.left_out import FILLER_INDEX


def ranks(dataset, number, packed, **options):
    """One sampler for each of several ranks."""
    samplers = []
    for rank in range(number):
        sampler = PlanSampler(dataset, seed=3, ranks=(rank, number), **options)
        samplers.append(PackBatchSampler(sampler, max_tokens=350) if packed else sampler)
    return samplers


def flat(step):
    return step if isinstance(step, list) else [step]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("group_by", [None, "length", "modality"])
@pytest.mark.parametrize("number", [1, 3])
def test_every_sample_once_an_epoch_over_all_ranks(planned_dataset, packed, group_by, number):
    orders = []
    for epoch in (0, 1):
        samplers = ranks(planned_dataset, number, packed, group_by=group_by, group_size=4)
        for sampler in samplers:
            sampler.seek(epoch)
        steps = [list(sampler) for sampler in samplers]
        assert (
            len({len(part) for part in steps})
            == 1
            == len({len(part) - sampler.num_steps(epoch) == 0 for part, sampler in zip(steps, samplers, strict=True)})
        )
        taken = [index for part in steps for step in part for index in flat(step) if index != FILLER_INDEX]
        assert len(taken) == len(set(taken)) and set(taken) == set(range(37))
        orders.append(taken)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("packed", [False, True])
def test_resuming_with_other_ranks_goes_on_where_it_stopped(planned_dataset, packed):
    together = ranks(planned_dataset, 2, packed)
    steps = [list(sampler) for sampler in together]
    taken = [tuple(flat(step)) for both in zip(*steps, strict=True) for step in both]
    cell = together[0].sampler.cell if packed else 2
    after = ranks(planned_dataset, 3, packed)
    for sampler in after:
        sampler.seek(0, 6, cell)
    rest = [tuple(flat(step)) for steps in zip(*after, strict=True) for step in steps]
    assert [step for step in taken[:6] + rest if step != (FILLER_INDEX,)] == [
        step for step in taken if step != (FILLER_INDEX,)
    ]


def test_groups_are_of_alike_length_and_kind_and_padding_falls(planned_dataset):
    samplers = [PlanSampler(planned_dataset, seed=0, group_by=by, group_size=4) for by in ("modality", "length", None)]
    tokens, tiles, _ = planned_dataset.layout()
    orders = [sampler.order(0)[:36].reshape(-1, 4) for sampler in samplers]
    for group in orders[0][1:8]:  # after those with most tokens, of either kind
        assert len(set(tiles[group] > 0)) == 1
    lengths = [tokens[order][1:] for order in orders]
    padding = [(rows.max(1, keepdims=True) - rows).sum() / rows.sum() for rows in lengths]
    assert max(padding[:2]) < padding[2] / 2


def test_the_order_of_the_mixture_needs_no_lengths(planned_dataset, monkeypatch):
    monkeypatch.setattr(type(planned_dataset), "layout", None)
    sampler = PlanSampler(planned_dataset, seed=0, shuffle=False)
    assert list(sampler) == list(range(40)) and sampler.digest and sampler.left_out() == []


@pytest.mark.parametrize("packed, group_by", [(False, None), (False, "length"), (True, None)])
@pytest.mark.parametrize("number, batch", [(1, 1), (1, 4), (2, 2)])
def test_no_batch_of_a_run_is_heavier_than_the_first(planned_dataset, packed, group_by, number, batch):
    samplers = ranks(planned_dataset, number, packed, group_by=group_by, group_size=4)
    tokens, tiles, _ = planned_dataset.layout()
    weights = []
    for epoch in (0,) if packed else (0, 1, 2):
        for sampler in samplers:
            sampler.seek(epoch)
            taken = [[index for index in flat(step) if index != FILLER_INDEX] for step in sampler]
            batches = taken if packed else [sum(taken[at : at + batch], []) for at in range(0, len(taken), batch)]
            weights += [(int(tokens[part].sum()), int(tiles[part].sum()) * packed) for part in batches]
    assert weights[0] == max(weights) and len(set(weights)) > 3


def test_wrong_settings_of_samplers(planned_dataset):
    with pytest.raises(SettingError, match="batch_size"):
        PackBatchSampler(PlanSampler(planned_dataset, seed=0), batch_size=2)
    with pytest.raises(SettingError, match="PlanSampler"):
        PackBatchSampler([1, 2])
    with pytest.raises(SettingError, match="group_by"):
        PlanSampler(planned_dataset, seed=0, group_by="size")
