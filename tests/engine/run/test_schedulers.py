"""Learning rates of a run, step by step."""

import math

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch.optim import SGD

from xtuner_plugins.engine.run.schedulers import count_steps


def test_schedules_count_optimizer_steps():
    """Ours, by its path as in a dump, and MMEngine's by iterations; one that counts epochs is refused."""
    own = dict(type="xtuner_plugins.engine.WarmupCosineLR", warmup_ratio=0.03, eta_min=0.1, by_epoch=True)

    def made(**more):
        wrapper = OptimWrapper(SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
        return wrapper, PARAM_SCHEDULERS.build({**own, "optimizer": wrapper, **more})

    (wrapper, scheduler), (_, longer), found = made(end=990), made(end=1000), []
    for _ in range(990):
        found.append(wrapper.param_groups[0]["lr"])
        wrapper.step()
        scheduler.step()
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * n / 960)) / 2 for n in range(960)]
    assert found == pytest.approx([n / 30 for n in range(1, 31)] + falling, abs=1e-9)
    longer.load_state_dict(scheduler.state_dict())  # a run that goes on keeps its own length
    assert (longer.last_step, longer.end, longer.by_epoch) == (989, 1000, False)
    with pytest.raises(ValueError, match="warmup_ratio=2 is out of range"):
        made(warmup_ratio=2)
    theirs = [dict(type=LinearLR, by_epoch=False, end=5), dict(type=CosineAnnealingLR, by_epoch=False, begin=5)]
    assert count_steps(theirs) == theirs and count_steps(None) is None and count_steps(scheduler) is scheduler
    assert count_steps([own]) == [{**own, "by_epoch": False}]
    for kind in (LinearLR, "CosineAnnealingLR"):
        with pytest.raises(ValueError, match="^(LinearLR|CosineAnnealingLR) counts epochs; set param_scheduler to War"):
            count_steps([dict(type=kind, convert_to_iter_based=True)])
