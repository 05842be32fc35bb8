"""A step that is shown is the step that a run trains: under packing, on two ranks, and after a resume."""

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from xtuner_plugins.datasets import MultimodalDataset, PackBatchSampler, PlanSampler, collate, collate_packed
from xtuner_plugins.engine.run.loops import PlanIterator
from xtuner_plugins.engine.run.step_batches import micro_batches, take_step
from xtuner_plugins.settings import ConfigError

from ..parallel_case import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), num_samples=22)


@pytest.fixture
def config(toy_base, data, tmp_path):
    """config(packed) -> a run's config, as far as its batches depend on it."""

    def make(packed=False, **more):
        dataset = dict(
            type=MultimodalDataset,
            base=str(toy_base),
            data_paths=[str(data[0])],
            image_folders=[str(data[1])],
            max_length=400,
        )
        loader = dict(
            batch_size=1 if packed else 2,
            num_workers=2,
            persistent_workers=True,
            sampler=dict(type=PlanSampler),
            collate_fn=dict(type=collate_packed if packed else collate),
            dataset=dataset,
        )
        if packed:
            loader["batch_sampler"] = dict(type=PackBatchSampler, max_tokens=400)
        settings = dict(
            train_dataloader=loader,
            optim_wrapper=dict(accumulative_counts=2),
            train_cfg=dict(max_epochs=2),
            randomness=dict(seed=3),
        )
        return Config({**settings, **more})

    return make


def steps_of_a_run(cfg, monkeypatch, rank=0, num_ranks=1, place=None):
    """Sources of each step to the end of the second epoch, by the iterator that trains."""
    monkeypatch.setattr("xtuner_plugins.datasets.samplers.get_dist_info", lambda: (rank, num_ranks))
    loader = Runner.build_dataloader({**cfg.train_dataloader, "num_workers": 0, "persistent_workers": False}, seed=3)
    iterator = PlanIterator(loader, cfg.optim_wrapper.accumulative_counts)
    if place:
        iterator.skip_to(place)
    found = []
    for step in iterator:
        if iterator.epoch > 1:
            monkeypatch.undo()
            return found
        found.append(([batch["sources"] for batch in step], iterator.position()))


def shown(cfg, number, rank=0, num_ranks=1, seed=None, checkpoint=None):
    return take_step(cfg, number, rank, num_ranks, seed, checkpoint)


def sources(step):
    return [batch["sources"] for batch in step.batches]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("rank", "num_ranks"), [(0, 1), (0, 2), (1, 2)])
def test_every_step_is_that_of_a_run(config, monkeypatch, packed, rank, num_ranks):
    cfg = config(packed)
    expected = steps_of_a_run(cfg, monkeypatch, rank, num_ranks)
    for number, (wanted, position) in enumerate(expected, 1):
        step = shown(cfg, number, rank=rank, num_ranks=num_ranks)
        assert sources(step) == wanted and step.epoch == position["epoch"]
        assert step.batches[0]["tiles"].shape[0] == int(step.batches[0]["num_tiles"].sum())
    with pytest.raises(ConfigError, match=f"the run has the steps 1 to {len(expected)}; there is no step"):
        shown(cfg, len(expected) + 1, rank=rank, num_ranks=num_ranks)


def test_after_a_resume_on_other_ranks(config, monkeypatch):
    cfg = config(True)
    _, place = steps_of_a_run(cfg, monkeypatch)[1]
    checkpoint = {"iter": 2, "plan": place}
    for rank in (0, 1):
        for number, (wanted, _) in enumerate(steps_of_a_run(cfg, monkeypatch, rank, 2, place), 3):
            assert sources(shown(cfg, number, rank=rank, num_ranks=2, checkpoint=checkpoint)) == wanted
    with pytest.raises(ConfigError, match="the run has the steps 3 to .*; there is no step 2"):
        shown(cfg, 2, checkpoint=checkpoint)


def test_what_decides_the_order(config):
    cfg = config()
    assert sources(shown(cfg, 1)) == sources(shown(cfg, 1, seed=3)) != sources(shown(cfg, 1, seed=4))
    with pytest.raises(ConfigError, match="randomness.seed isn't set"):
        shown(config(randomness=dict(seed=None)), 1)
    with pytest.raises(ConfigError, match="the run has the steps 1 to 4;"):
        shown(config(train_cfg=dict(max_epochs=2, max_iters=4)), 5)


def test_micro_batches():
    accumulated = dict(optim_wrapper=dict(accumulative_counts=4))
    assert micro_batches(Config(accumulated)) == 4 and micro_batches(Config(dict(optim_wrapper={}))) == 1
    strategy = dict(config=dict(gradient_accumulation_steps=8))
    assert micro_batches(Config(dict(accumulated, strategy=strategy))) == 8
