"""Plans of epochs: every sample once over all ranks, resumed anywhere."""

import os
import sys
import zlib
from functools import partial
from itertools import chain, product

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.engine.forked import train_forked, write_dataset
from xtuner_plugins.datasets import PackBatchSampler, PlanSampler, SettingError
from xtuner_plugins.datasets.left_out import FILLER_INDEX
from xtuner_plugins.datasets.plan import plan


def ranks(dataset, number, packed, **options):
    """One sampler for each of several ranks."""
    samplers = [PlanSampler(dataset, seed=3, ranks=(rank, number), **options) for rank in range(number)]
    return [PackBatchSampler(sampler, max_tokens=350) for sampler in samplers] if packed else samplers


def flat(steps):
    """Indices of the samples of steps of one rank or several."""
    items = [step if isinstance(step, list) else [step] for step in steps]
    return [index for item in items for index in item if index != FILLER_INDEX]


def test_every_sample_once_an_epoch_over_all_ranks_and_the_heaviest_first(planned_dataset):
    tokens, tiles, _ = planned_dataset.layout()
    for packed, group_by, number in product((False, True), (None, "length", "modality"), (1, 2, 3)):
        samplers, orders = ranks(planned_dataset, number, packed, group_by=group_by, group_size=4), []
        for epoch in range(3):
            for sampler in samplers:
                sampler.seek(epoch)
            steps = [list(sampler) for sampler in samplers]
            assert {len(part) for part in steps} == {len(samplers[0])} == {samplers[0].num_steps(epoch)}
            together = [flat([step]) for step in chain(*zip(*steps, strict=True))]
            loads = [(int(tokens[step].sum()), int(tiles[step].sum()) * packed) for step in together]
            if epoch == 0:  # as many as a group has begin the run, the longest at their head
                assert loads[0] == max(loads) and (packed or sorted(loads[:4]) == sorted(loads)[-4:])
            orders.append(sum(together, []))
            assert sorted(orders[-1]) == list(range(37))
        assert orders[0] != orders[1] != orders[2]


ORDERS = {None: 1252522626, "length": 1521935925, "modality": 691789402}


def test_plans_stay_the_same_from_version_to_version(planned_dataset):
    """A run that goes on under a newer version goes on with its plan: hashes of two epochs' samples, and of packs."""
    found = {}
    for group_by in ORDERS:
        sampler = PlanSampler(planned_dataset, seed=3, group_by=group_by, group_size=2)
        packs = PackBatchSampler(sampler, max_tokens=350)
        orders = [sampler.order(0), sampler.order(1), packs.packs(0).order, packs.packs(1).order]
        found[group_by] = zlib.crc32(np.concatenate(orders).astype("int32").tobytes())
        assert list(packs.taken(0, 99)) == packs.packs(0).order.tolist() and not len(packs.taken(0, 0))
    assert found == ORDERS


def test_resuming_with_other_ranks_goes_on_where_it_stopped(planned_dataset):
    for packed in (False, True):
        together, after = (ranks(planned_dataset, number, packed) for number in (2, 3))
        taken = [flat([step]) for steps in zip(*map(list, together), strict=True) for step in steps]
        for sampler in after:
            sampler.seek(0, 6, together[0].cell)
        rest = [flat([step]) for steps in zip(*map(list, after), strict=True) for step in steps]
        assert [step for step in taken[:6] + rest if step] == [step for step in taken if step]
        assert list(together[0].taken(0, 6)) == sum(taken[:6], [])


def test_groups_are_of_alike_length_and_kind_and_padding_falls(planned_dataset):
    samplers = [PlanSampler(planned_dataset, seed=0, group_by=by, group_size=4) for by in ("modality", "length", None)]
    tokens, tiles, _ = planned_dataset.layout()
    orders = [sampler.order(0)[:36].reshape(-1, 4) for sampler in samplers]
    for group in orders[0][1:8]:  # after those with most tokens, of either kind
        assert len(set(tiles[group] > 0)) == 1
    lengths = [tokens[order][1:] for order in orders]
    padding = [(rows.max(1, keepdims=True) - rows).sum() / rows.sum() for rows in lengths]
    assert max(padding[:2]) < padding[2] / 2


def test_the_order_of_the_mixture_needs_no_lengths_and_wrong_settings_are_named(planned_dataset, monkeypatch):
    monkeypatch.setattr(type(planned_dataset), "layout", None)
    sampler = PlanSampler(planned_dataset, seed=0, shuffle=False)
    for words, kind, settings in (
        ("batch_size", PackBatchSampler, {"sampler": sampler, "batch_size": 2}),
        ("PlanSampler", PackBatchSampler, {"sampler": [1, 2]}),
        ("group_by", PlanSampler, {"dataset": planned_dataset, "group_by": "size"}),
        ("no whole groups of 2", PlanSampler, {"dataset": planned_dataset, "ranks": (0, 3), "sequence_parallel": 2}),
    ):
        with pytest.raises(ValueError, match=words):
            kind(**settings)
    assert list(sampler) == list(range(40)) and sampler.digest and sampler.left_out() == []
    assert sampler.describe_data().startswith("data: 40 samples in the order of the mixture; their lengths aren't")
    shared = PlanSampler(planned_dataset, seed=0, shuffle=False, ranks=(3, 4), sequence_parallel=2)
    shared.seek(0, 6)
    shared.set_epoch(0)  # a run that is resumed within the epoch
    assert list(shared) == list(range(7, 40, 2)) and shared.copies == 2


SAID = """data: 37 of 40 samples will train; left out: 1 too_long, 1 image_missing, 1 no_conversations
packing: 37 samples in 8 packs of at most 350 tokens (4.62 samples per pack, 3.50% of the budget empty, \
1 ranks wait 0.00% of the time)"""


def test_what_is_said_of_a_plan_and_what_tells_it_from_others(planned_dataset, monkeypatch):
    plans = [PlanSampler(planned_dataset, seed=seed) for seed in (3, 3, 4)]
    packs = [PackBatchSampler(each, max_tokens=most) for each, most in zip(plans, (350, 350, 349), strict=True)]
    assert packs[0].describe_data() == SAID and len(packs[0].left_out()) == 3
    for name, (first, same, other) in {"sampler": plans, "batch_sampler": packs}.items():
        assert first.digest == same.digest != other.digest
        assert plan.plan_of(DataLoader(planned_dataset, **{name: first})) is first
    with pytest.raises(SettingError, match="can't plan a SequentialSampler"):
        plan.plan_of(DataLoader(planned_dataset))
    monkeypatch.setattr(plan, "all_gather_object", lambda digest: [digest, plans[0].digest])
    monkeypatch.setattr(plan, "get_world_size", lambda: 2)
    plan.require_agreement(plans[1])
    with pytest.raises(SettingError, match="the ranks don't find the same data") as refused:
        plan.require_agreement(plans[2])
    assert refused.value.on_every_rank


def read_other_file_on_rank_1(path, other):
    """As on a second node whose copy of the annotations is older."""
    if os.environ["RANK"] == "1":
        sys.argv = [word.replace(str(path), str(other)) for word in sys.argv]


@pytest.mark.slow
def test_ranks_that_find_different_data_stop_with_one_line(toy_base, tmp_path):
    path, images = write_dataset(tmp_path / "data")
    other = path.with_name("older.jsonl")
    other.write_text("".join(path.read_text().splitlines(keepends=True)[:9]))
    one = {"train_dataloader.batch_size": 1}  # pack
    case = dict(processes=2, config="configs/toy/toy_finetune_packed.py", options=one)
    case["prepare"] = partial(read_other_file_on_rank_1, path, other)
    run = train_forked(tmp_path / "run", toy_base, (path, images), **case)
    assert run.codes == [1, 1], run.output[-2000:]
    [line] = run.errors
    assert "the ranks don't find the same data" in line and "error" not in run.others
