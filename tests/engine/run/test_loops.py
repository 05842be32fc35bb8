import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from xtuner_plugins.datasets import PlanSampler, SettingError
from xtuner_plugins.datasets.plan.plan import Plan
from xtuner_plugins.engine.run.loops import PlanChanged, PlanIterator, PlannedTrainLoop, _settle_optimizer


class Numbers(Dataset):
    """Samples that are their own index, and remember that they were opened."""

    def __init__(self, size=10):
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


def make(batch_size=2, rank=0, ranks=1, size=10, micro_batches=1, seed=3):
    dataset = Numbers(size)
    sampler = PlanSampler(dataset, seed=seed)
    sampler.rank, sampler.num_ranks = rank, ranks
    sampler.seek(0)
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=list)
    return dataset, PlanIterator(loader, micro_batches)


def take(iterator, count):
    """The samples of each of the next steps, one list per step."""
    return [sum(next(iterator), []) for _ in range(count)]


def test_epochs_follow_each_other_in_new_orders():
    """A step has its micro-batches, and ends with the epoch."""
    _, iterator = make()
    first, second = take(iterator, 5), take(iterator, 5)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(10)) and first != second
    _, iterator = make(micro_batches=2)
    assert [len(next(iterator)) for _ in range(6)] == [2, 2, 1, 2, 2, 1]


def test_resuming_goes_on_where_it_stopped_and_opens_nothing_twice():
    for steps, micro_batches in itertools.product((1, 4, 5, 7), (1, 3)):
        _, whole = make(micro_batches=micro_batches)
        take(whole, steps)
        place, after = whole.position(), take(whole, 6)
        dataset, resumed = make(micro_batches=micro_batches)
        resumed.skip_to(place)
        assert dataset.opened == []
        assert take(resumed, 6) == after and dataset.opened == sum(after, [])


def test_the_rest_of_the_data_is_planned_with_the_ranks_of_now():
    """One rank has trained 2 of 6 steps of 2; whatever goes on takes the other 8 samples and then stops."""
    _, before = make(size=12)
    trained = sum(take(before, 2), [])
    for ranks, micro_batches in ((1, 1), (2, 1), (1, 3), (2, 2), (4, 1)):
        rest, seen = set(), [*trained]
        for rank in range(ranks):
            _, iterator = make(size=12, rank=rank, ranks=ranks, micro_batches=micro_batches)
            iterator.skip_to(before.position())
            rest.add(iterator.steps_ahead(1))
            seen += sum(take(iterator, max(rest)), [])
        assert len(rest) == 1 and sorted(index for index in seen if index < 12) == list(range(12))


def test_position_counts_all_ranks():
    _, iterator = make(batch_size=2, rank=1, ranks=2, size=12)
    for steps, epoch, position in ((2, 0, 8), (2, 1, 4)):
        take(iterator, steps)
        digest = iterator.plan.digest
        assert iterator.position() == {"epoch": epoch, "position": position, "cell": 2, "digest": digest}


def test_no_epoch_goes_on_with_other_data():
    """Record 3 was added, or the seed changed, after the checkpoint; at an epoch's start that is fine."""
    _, before = make(size=12)
    start = before.position()
    take(before, 2)
    for changed in (make(size=13), make(size=12, seed=4)):
        with pytest.raises(PlanChanged, match="stands after 4 samples .* of epoch 1: going on would train some"):
            changed[1].skip_to(before.position())
        changed[1].skip_to(start)
        assert take(changed[1], 1)
    _, more_ranks = make(size=12, ranks=2)
    more_ranks.skip_to(before.position())


def test_other_samplers_are_refused():
    with pytest.raises(SettingError, match="PlannedTrainLoop can't plan a SequentialSampler; set sampler="):
        PlanIterator(DataLoader(Numbers(4), batch_size=2, collate_fn=list))


def test_batches_of_an_epoch_are_the_loader_s():
    for drop_last, batches in ((False, 4), (True, 3)):
        sampler = PlanSampler(Numbers(10), seed=3)
        loader = DataLoader(Numbers(10), batch_size=3, sampler=sampler, collate_fn=list, drop_last=drop_last)
        iterator = PlanIterator(loader)
        assert iterator.steps_of_epoch(0) == len(loader) == batches
        take(iterator, batches)
        assert iterator.epoch == 0 and take(iterator, 1) and iterator.epoch == 1


class Packs(Plan):
    """So many packs in each epoch."""

    batch_size, num_ranks, cell, digest = 1, 1, 1, ""

    def __init__(self, *numbers):
        self.num_steps = numbers.__getitem__


def test_steps_of_epochs_of_unequal_packs():
    """Of several micro-batches, the last one ends with its epoch; the last epoch may be a part."""
    loader, found = DataLoader(Numbers(), batch_sampler=Packs(7, 8, 6)), {}
    for micro_batches, epochs in ((1, (2, 3, 0.5, 1.5)), (4, (1, 2, 3, 1.5))):
        found[micro_batches] = [PlanIterator(loader, micro_batches).count_steps(each) for each in epochs]
    assert found == {1: [15, 21, 4, 11], 4: [2, 4, 6, 3]}


class Flexible(FlexibleRunner):
    """A runner under DeepSpeed as far as its optimizer is settled."""

    def __init__(self, **config):
        self.cfg, self.optim_wrapper = Config(), {"type": "DeepSpeedOptimWrapper"}
        self.strategy = SimpleNamespace(config=config)


def test_micro_batches_of_a_step_under_deepspeed_are_those_of_its_configuration():
    assert [_settle_optimizer(each) for each in (Flexible(gradient_accumulation_steps=3), Flexible())] == [3, 1]


def test_the_model_is_put_into_training_mode_once_and_after_what_leaves_it(monkeypatch):
    """Visiting every module in each step took 13 ms of an 8B; a validation, or a hook in step 3, needs it again."""
    model, calls, modes = nn.Dropout().eval(), [], []
    monkeypatch.setattr(model, "train", lambda mode=True: calls.append(mode) or nn.Module.train(model, mode))
    loop = PlannedTrainLoop.__new__(PlannedTrainLoop)
    validation = SimpleNamespace(run=model.eval)
    loop._runner, loop._iter, loop._max_iters, loop.stop_training = SimpleNamespace(model=model), 0, 6, False
    loop._runner.val_loop, loop.val_begin, loop.val_interval = validation, 1, 4
    loop.dynamic_milestones, loop.dynamic_intervals = [0], [4]
    loop.dataloader_iterator = iter(range(6))

    def run_iter(step):
        modes.append(model.training)
        loop._iter += 1
        if step == 2:
            model.eval()

    monkeypatch.setattr(loop, "run_iter", run_iter)
    loop._run_steps()
    assert modes == [True] * 6
    assert calls == [True, False, True, False, True, False]  # step 3, step 4, and the end
