"""Learning rates of a run, step by step, of recipes and of schedules as XTuner's recipes write them."""

import math

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch.optim import SGD

from xtuner_plugins.engine.run.schedulers import WarmupCosineLR, plan_schedule
from xtuner_plugins.settings import read_config


def rates(schedulers, steps, end, resumed=None):
    """The learning rate of each optimizer step, as MMEngine's hook steps the schedulers, and what they save."""
    wrapper = OptimWrapper(SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    built = [PARAM_SCHEDULERS.build({"end": end, **item, "optimizer": wrapper}) for item in schedulers]
    if resumed:
        built[0].load_state_dict(resumed)
    found = []
    for _ in range(steps):
        found.append(wrapper.param_groups[0]["lr"])
        wrapper.step()
        for scheduler in built:
            scheduler.step()
    return found, built[0].state_dict()


def test_a_config_warms_up_in_optimizer_steps_and_spans_the_run_that_it_is_in():
    """The config's share of the steps leads to its lr, then the rate falls; a resume may change the end."""
    settings = read_config("pretrain_mlp").param_scheduler

    def expected(step, end):
        warmup = math.ceil(settings.warmup_ratio * end)
        return min((step + 1) / warmup, (1 + math.cos(math.pi * max(0, step - warmup) / (end - warmup))) / 2)

    found, _ = rates(plan_schedule([settings], steps_per_epoch=1000), 1000, 1000)
    assert found == pytest.approx([expected(step, 1000) for step in range(1000)], abs=1e-9)
    found, _ = rates([settings], 300, 500, resumed=rates([settings], 200, 1000)[1])
    assert found[1:] == pytest.approx([expected(step, 500) for step in range(201, 500)], abs=1e-9)


def test_schedules_count_optimizer_steps():
    """XTuner's pair, over 2 epochs of 50 steps: warm-up 0.03 of the run; ours, however its type is named."""
    written = [
        dict(type=LinearLR, start_factor=1e-5, by_epoch=True, begin=0, end=0.03 * 2, convert_to_iter_based=True),
        dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=0.06, end=2, convert_to_iter_based=True),
    ]
    found, _ = rates(plan_schedule(written, steps_per_epoch=50), 100, 100)
    assert found[0] == pytest.approx(1e-5) and found[3] == pytest.approx(1.0, abs=0.01) and found[-1] < 1e-3
    assert "convert_to_iter_based" in written[0]
    for kind in (WarmupCosineLR, "WarmupCosineLR", "xtuner_plugins.engine.WarmupCosineLR"):
        assert plan_schedule(dict(type=kind, warmup_ratio=0.1), 4)["by_epoch"] is False
