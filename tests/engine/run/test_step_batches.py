"""A step that is shown is the step that a run trains: under packing and on two ranks, too."""

import itertools

import pytest
from mmengine.runner import Runner

from xtuner_plugins.engine.run.loops import PlanIterator, micro_batches, take_step
from xtuner_plugins.settings import ConfigError, read_config

from ..parallel_case import base_and_data

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
def test_every_step_is_that_of_a_run(toy_base, data, leaf):
    cfg = read_config(leaf, {**base_and_data(toy_base, data), **SETTINGS})
    for ranks in ((0, 1), (0, 2), (1, 2)):
        steps = steps_of_a_run(cfg, ranks)
        assert [shown(cfg, number, *ranks) for number in range(1, len(steps) + 1)] == steps
        for number in (0, len(steps) + 1):
            with pytest.raises(
                ConfigError, match=f"the run has the steps 1 to {len(steps)}; there is no step {number}"
            ):
                shown(cfg, number, *ranks)
    cfg.randomness.seed = 3
    assert shown(cfg, 1, seed=None) == shown(cfg, 1, seed=3) != shown(cfg, 1, seed=4)
    cfg.train_cfg.max_iters, cfg.randomness.seed = 1, None
    for number, seed, says in ((5, 7, "the run has the steps 1 to 1;"), (1, None, "randomness.seed isn't set")):
        with pytest.raises(ConfigError, match=says):
            shown(cfg, number, seed=seed)
    cfg.strategy = {"config": {"gradient_accumulation_steps": 8}}
    assert micro_batches(cfg) == 8
