"""Learning rates of a run, step by step: ours, and those of XTuner's recipes."""

import math

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch.optim import SGD

from xtuner_plugins.engine.run.schedulers import plan_schedule


def rates(schedulers, end, steps_per_epoch):
    """The learning rate of each optimizer step, as MMEngine's hook steps the schedulers."""
    wrapper, found = OptimWrapper(SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)), []
    planned = plan_schedule(schedulers, steps_per_epoch)
    built = [PARAM_SCHEDULERS.build({"end": end, **item, "optimizer": wrapper}) for item in planned]
    for _ in range(end):
        found.append(wrapper.param_groups[0]["lr"])
        wrapper.step()
        for scheduler in built:
            scheduler.step()
    return found


def test_schedules_count_optimizer_steps():
    """Ours, also by its path, as in a dump; XTuner's pair, over 2 epochs of 50 steps: warm-up 0.03 of the run."""
    found = rates([dict(type="xtuner_plugins.engine.WarmupCosineLR", warmup_ratio=0.03, by_epoch=True)], 990, 1)
    falling = [(1 + math.cos(math.pi * n / 960)) / 2 for n in range(960)]
    assert found == pytest.approx([step / 30 for step in range(1, 31)] + falling, abs=1e-9)
    written = [
        dict(type=LinearLR, start_factor=1e-5, by_epoch=True, begin=0, end=0.03 * 2, convert_to_iter_based=True),
        dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=0.06, end=2, convert_to_iter_based=True),
    ]
    found = rates(written, 100, 50)
    assert found[0] == pytest.approx(1e-5) and found[3] == pytest.approx(1.0, abs=0.01) and found[-1] < 1e-3
