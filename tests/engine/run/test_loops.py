import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, dataloader

from xtuner_plugins.datasets import PlanSampler, SettingError
from xtuner_plugins.datasets.plan.plan import Plan
from xtuner_plugins.engine.run.loops import PlanIterator, PlannedTrainLoop, TrainingStopped, take_step
from xtuner_plugins.engine.run.schedulers import WarmupCosineLR
from xtuner_plugins.settings import ConfigError, read_config

from ..forked import base_and_data


class Numbers(Dataset):
    """Samples that are their own index, and remember that they were opened."""

    def __init__(self, size):
        self.size, self.opened, self.sources = size, [], []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.opened.append(index)
        return index

    def layout(self):
        return np.ones((3, self.size), int)

    def usable(self, fates):
        return np.arange(self.size)


def make(batch_size=2, rank=0, ranks=1, size=12, micro_batches=1, seed=3, **options):
    sampler = PlanSampler(dataset := Numbers(size), seed=seed)
    sampler.rank, sampler.num_ranks = rank, ranks
    sampler.seek(0)
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=list, **options)
    return PlanIterator(loader, micro_batches)


def take(iterator, count):
    """The samples of each of the next steps, one list per step."""
    return [sum(next(iterator), []) for _ in range(count)]


def test_resuming_goes_on_where_it_stopped_and_opens_nothing_twice():
    """A step has its micro-batches, and ends with the epoch; the next one has another order."""
    for steps, (micro_batches, length) in itertools.product((1, 4, 5, 7), ((1, 6), (4, 2))):
        whole = make(micro_batches=micro_batches)
        found = take(whole, steps + 12)
        first, second = sum(found[:length], []), sum(found[length : 2 * length], [])
        assert sorted(first) == sorted(second) == list(range(12)) and first != second
        take(before := make(micro_batches=micro_batches), steps)
        resumed = make(micro_batches=micro_batches)
        resumed.skip_to(before.position())
        opened = resumed._dataloader.dataset.opened
        assert opened == [] and take(resumed, 6) == found[steps : steps + 6]
        assert opened == sum(found[steps : steps + 6], [])


def test_the_rest_of_the_data_is_planned_with_the_ranks_of_now():
    """One rank has trained 2 of 6 steps of 2; whatever goes on takes the other 8 samples and then stops."""
    trained = sum(take(before := make(), 2), [])
    for ranks, micro_batches in ((1, 1), (2, 1), (1, 3), (2, 2), (4, 1)):
        rest, seen = set(), [*trained]
        for rank in range(ranks):
            iterator = make(rank=rank, ranks=ranks, micro_batches=micro_batches)
            iterator.skip_to(before.position())
            rest.add(iterator.steps_ahead(1))
            seen += sum(take(iterator, max(rest)), [])
        assert len(rest) == 1 and sorted(index for index in seen if index < 12) == list(range(12))
    iterator = make(rank=1, ranks=2)
    for steps, epoch, position in ((2, 0, 8), (2, 1, 4)):  # of all ranks
        take(iterator, steps)
        place = {"epoch": epoch, "position": position, "cell": 2, "digest": iterator.plan.digest}
        assert iterator.position() == place


def test_a_run_that_goes_on_plans_the_rest():
    """Three steps of two samples were made, and steps have one now; without a position, three of these."""
    take(before := make(batch_size=2, size=12), 3)
    for at, epochs, given, last in (
        (before.position(), 1, None, 9),
        (before.position(), 2, 5, 5),
        (before.position(), None, None, 7),
        (None, 1, None, 12),
    ):
        loop, schedule = object.__new__(PlannedTrainLoop), object.__new__(WarmupCosineLR)
        own = {"dataloader_iterator": make(batch_size=1, size=12), "resume_at": at, "planned_epochs": epochs}
        own |= {"_iter": 3, "_max_iters": 7, "_max_iters_given": given, "_runner": SimpleNamespace()}
        own["_runner"].param_schedulers, schedule.end = [schedule], 7
        vars(loop).update(own)
        loop._go_on()
        assert loop._max_iters == schedule.end == last
        assert take(loop.dataloader_iterator, 1) == take(make(batch_size=1, size=12), 7 if at else 4)[-1:]


def test_no_epoch_goes_on_with_other_data():
    """Record 3 was added, or the seed changed, after the checkpoint; at an epoch's start that is fine."""
    start = (before := make()).position()
    take(before, 2)
    for changed in (make(size=13), make(seed=4)):
        with pytest.raises(TrainingStopped, match="stands after 4 samples .* of epoch 1: going on would train some"):
            changed.skip_to(before.position())
        changed.skip_to(start)
        assert take(changed, 1)


class Packs(Plan):
    """So many packs in each epoch."""

    batch_size, num_ranks, cell, digest = 1, 1, 1, ""
    num_steps = (7, 8, 6).__getitem__


def test_steps_of_an_epoch():
    """As many as the loader has; of unequal packs and several micro-batches; the last epoch may be a part."""
    for drop_last, batches in ((False, 4), (True, 3)):
        iterator = make(batch_size=3, size=10, drop_last=drop_last)
        assert iterator.steps_of_epoch(0) == batches and take(iterator, batches) and iterator.epoch == 0
        assert take(iterator, 1) and iterator.epoch == 1
    loader = DataLoader(Numbers(10), batch_sampler=Packs())
    for micro_batches, steps in ((1, {2: 15, 3: 21, 0.5: 4, 1.5: 11}), (4, {1: 2, 2: 4, 3: 6, 1.5: 3})):
        assert {epochs: PlanIterator(loader, micro_batches).count_steps(epochs) for epochs in steps} == steps
    with pytest.raises(SettingError, match="PlannedTrainLoop can't plan a SequentialSampler; set sampler="):
        PlanIterator(DataLoader(Numbers(4)))


SETTINGS = {"train_dataloader.batch_size": 1, "train_cfg.max_epochs": 2, "optim_wrapper.accumulative_counts": 2}


def steps_of_a_run(cfg, ranks):
    """(epoch, sources) of each step to the end of the second epoch, by the iterator that trains."""
    own = {"num_workers": 0, "persistent_workers": False, "sampler": {**cfg.train_dataloader.sampler, "ranks": ranks}}
    iterator = PlanIterator(Runner.build_dataloader({**cfg.train_dataloader, **own}, seed=7), 2)
    found = ((iterator.epoch, [batch["sources"] for batch in step]) for step in iterator)
    return list(itertools.takewhile(lambda step: step[0] < 2, found))


def shown(cfg, number, rank=0, num_ranks=1, seed=7):
    epoch, batches, _ = take_step(cfg, number, rank, num_ranks, seed)
    return epoch, [batch["sources"] for batch in batches]


@pytest.mark.parametrize("leaf", ["toy_finetune_full", "toy_finetune_packed"])
def test_every_step_is_that_of_a_run(toy_base, data, leaf, monkeypatch):
    """No process is started for it."""
    monkeypatch.setattr(dataloader, "_MultiProcessingDataLoaderIter", None)
    cfg = read_config(leaf, {**base_and_data(toy_base, data), **SETTINGS})
    for ranks in ((0, 1), (0, 2), (1, 2)):
        steps = steps_of_a_run(cfg, ranks)
        assert [shown(cfg, number, *ranks) for number in range(1, len(steps) + 1)] == steps
        for number in (0, len(steps) + 1):
            with pytest.raises(ConfigError, match=f"has the steps 1 to {len(steps)}; there is no step {number}"):
                shown(cfg, number, *ranks)
    cfg.randomness.seed = 3
    assert shown(cfg, 1, seed=None) == shown(cfg, 1, seed=3) != shown(cfg, 1, seed=4)
    cfg.train_cfg.max_iters, cfg.randomness.seed = 1, None
    for number, seed, says in ((5, 7, "the run has the steps 1 to 1;"), (1, None, "randomness.seed isn't set")):
        with pytest.raises(ConfigError, match=says):
            shown(cfg, number, seed=seed)
    cfg.strategy = {"config": {"gradient_accumulation_steps": 1}}  # as a run under DeepSpeed has written it
    assert len(take_step(cfg, 1, 0, 1, 7)[1]) == 1
    cfg.strategy = {}
    del cfg.optim_wrapper.accumulative_counts
    assert len(take_step(cfg, 1, 0, 1, 7)[1]) == 1
