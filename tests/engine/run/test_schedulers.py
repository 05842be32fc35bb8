"""Learning rates of a run, step by step, of every recipe and of schedules as XTuner's recipes write them."""

import math

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch.optim import SGD

from xtuner_plugins.engine.run.schedulers import WarmupCosineLR, plan_schedule
from xtuner_plugins.settings import read_config


def rates(schedulers, steps, lr=1.0):
    """The learning rate of each optimizer step, as MMEngine's hook steps the schedulers."""
    wrapper = OptimWrapper(SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr))
    built = [PARAM_SCHEDULERS.build({"end": steps, **item, "optimizer": wrapper}) for item in schedulers]
    result = []
    for _ in range(steps):
        result.append(wrapper.param_groups[0]["lr"])
        wrapper.step()
        for scheduler in built:
            scheduler.step()
    return result


@pytest.mark.parametrize("name", ["pretrain_mlp", "finetune_dpo_lora"])
def test_a_config_warms_up_in_optimizer_steps(name):
    """Of 1,000 optimizer steps the config's share leads to its lr, then the rate falls."""
    cfg = read_config(name)
    lr, warmup = cfg.optim_wrapper.optimizer.lr, math.ceil(cfg.param_scheduler.warmup_ratio * 1000)
    found = rates(plan_schedule([cfg.param_scheduler], steps_per_epoch=1000), 1000, lr)
    assert 0 < warmup <= 200 and found[0] == pytest.approx(lr / warmup) and found[warmup - 1] == pytest.approx(lr)
    assert all(a < b for a, b in zip(found[: warmup - 1], found[1:warmup], strict=True))
    assert all(a > b for a, b in zip(found[warmup:], found[warmup + 1 :], strict=False)) and found[-1] < lr * 1e-5


def test_a_share_of_0_has_the_whole_rate_at_once_and_one_above_1_is_refused():
    found = rates([dict(type=WarmupCosineLR, by_epoch=False)], 10)
    assert found[0] == 1.0 and found[5] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="warmup_ratio=1.5"):
        rates([dict(type=WarmupCosineLR, warmup_ratio=1.5)], 10)


def test_a_resumed_schedule_spans_the_run_that_it_is_in():
    wrapper = OptimWrapper(SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    before = WarmupCosineLR(wrapper, end=100)
    for _ in range(50):
        wrapper.step()
        before.step()
    after = WarmupCosineLR(wrapper, end=75)
    after.load_state_dict(before.state_dict())
    wrapper.step()
    after.step()
    assert wrapper.param_groups[0]["lr"] == pytest.approx((1 + math.cos(math.pi * 51 / 75)) / 2)


def test_schedulers_in_epochs_are_converted_to_optimizer_steps():
    """XTuner's pair, over 2 epochs of 50 steps: warm-up 0.03 of the run."""
    written = [
        dict(type=LinearLR, start_factor=1e-5, by_epoch=True, begin=0, end=0.03 * 2, convert_to_iter_based=True),
        dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=0.06, end=2, convert_to_iter_based=True),
    ]
    found = rates(plan_schedule(written, steps_per_epoch=50), 100)
    assert found[0] == pytest.approx(1e-5) and found[3] == pytest.approx(1.0, abs=0.01) and found[-1] < 1e-3
    assert "convert_to_iter_based" in written[0]


@pytest.mark.parametrize("kind", [WarmupCosineLR, "WarmupCosineLR", "xtuner_plugins.engine.WarmupCosineLR"])
def test_the_schedule_counts_steps_however_its_type_is_named(kind):
    """By its path it stands in a dumped config: MMEngine would fill in an end in epochs."""
    assert plan_schedule(dict(type=kind, warmup_ratio=0.1), 4)["by_epoch"] is False
