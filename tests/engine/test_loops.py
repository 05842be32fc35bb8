from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader, Dataset

from xtuner_plugins.datasets import PlanSampler
from xtuner_plugins.engine.loops import PlanIterator, count_steps


class Numbers(Dataset):
    """Samples that are their own index, and remember that they were opened."""

    def __init__(self, size=10):
        self.size, self.opened = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.opened.append(index)
        return index


def make(batch_size=2, rank=0, ranks=1, size=10):
    dataset = Numbers(size)
    sampler = PlanSampler(dataset, seed=3)
    sampler.rank, sampler.num_ranks = rank, ranks
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=list)
    return dataset, PlanIterator(loader)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_epochs_follow_each_other_in_new_orders():
    _, iterator = make()
    first, second = take(iterator, 5), take(iterator, 5)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(10)) and first != second


@pytest.mark.parametrize("steps", [1, 4, 5, 7])
def test_resuming_goes_on_where_it_stopped_and_opens_nothing_twice(steps):
    _, whole = make()
    before, place, after = take(whole, steps), whole.position(), take(whole, 6)
    dataset, resumed = make()
    resumed.skip_to(place, steps)
    assert take(resumed, steps) == [None] * steps and dataset.opened == []
    assert take(resumed, 6) == after and before


def test_resuming_with_another_number_of_ranks():
    _, alone = make(batch_size=2, size=12)
    seen = sum(take(alone, 2), [])
    place = alone.position()
    for rank in range(2):
        _, iterator = make(batch_size=2, rank=rank, ranks=2, size=12)
        iterator.skip_to(place, 1)
        take(iterator, 1)
        seen += sum(take(iterator, 2), [])
    assert sorted(seen) == list(range(12))


def test_position_counts_all_ranks():
    _, iterator = make(batch_size=2, rank=1, ranks=2, size=12)
    take(iterator, 2)
    assert iterator.position() == {"epoch": 0, "position": 8}
    take(iterator, 1)
    take(iterator, 1)
    assert iterator.position() == {"epoch": 1, "position": 4}


def test_other_samplers_are_iterated_as_they_are():
    iterator = PlanIterator(DataLoader(Numbers(4), batch_size=2, collate_fn=list))
    assert iterator.plan is None and take(iterator, 3) == [[0, 1], [2, 3], [0, 1]]


class TestCountSteps:
    @staticmethod
    def packs(*numbers):
        return SimpleNamespace(batch_sampler=SimpleNamespace(num_steps=numbers.__getitem__))

    def test_epochs_of_unequal_packs(self):
        assert count_steps(self.packs(7, 8, 6), 2) == 15 and count_steps(self.packs(7, 8, 6), 3) == 21

    def test_a_part_of_an_epoch(self):
        assert count_steps(self.packs(7, 8, 6), 0.5) == 4 and count_steps(self.packs(7, 8, 6), 1.5) == 11

    def test_batches(self):
        assert count_steps(DataLoader(Numbers(10), batch_size=3), 2) == 8
