"""Checkpoints hold position, preprocessing and record of their run; no run goes on from another's."""

from types import SimpleNamespace

import pytest
from mmengine.config import ConfigDict

from xtuner_plugins.engine import PlannedTrainLoop, StateHook
from xtuner_plugins.weights import record


def test_a_position_and_another_run():
    """Where no launcher has compared before; every difference is a row of `tests/engine/run/test_same_run.py`."""
    parts = dict(model=dict(a=1), optim_wrapper=dict(optimizer=dict(lr=1)), train_dataloader=dict(dataset=dict(b=2)))
    runner = SimpleNamespace(_resume=True, _load_from="iter_4.pth", cfg=ConfigDict(parts))
    runner.train_loop = PlannedTrainLoop.__new__(PlannedTrainLoop)
    runner.train_dataloader = SimpleNamespace(dataset=[1, 2])
    position = SimpleNamespace(position=lambda: {"epoch": 1})
    runner.train_loop.dataloader_iterator = position
    steps = {"samples_per_step": 1, "ranks": 1, "batch_size": 1, "accumulative_counts": 1}
    said = {"base": {"path": "b", "files": {}}, "data": [], "settings": {"model": {"a": 1}}, "versions": {}}
    said["steps"] = {**steps, "max_epochs": 1, "max_iters": None}
    hook, checkpoint = StateHook(), {"meta": {"iter": 4}}
    hook._record = said
    hook.before_save_checkpoint(runner, checkpoint)
    run = checkpoint[record.KEY].pop("run")
    assert checkpoint == {"meta": {"iter": 4}, "plan": {"epoch": 1}, record.KEY: said}
    assert run["steps"] == 4 and run["hardware"].startswith("1 x ") and run["command"].startswith("xtuner train")
    hook.after_load_checkpoint(runner, checkpoint)
    assert runner.train_loop.resume_at == {"epoch": 1}
    hook._record = {**said, "settings": {"model": {"a": 3}}}
    with pytest.raises(ValueError, match="iter_4.pth: this isn't the run .*model.a was 1 and is 3.*load_from=iter_4"):
        hook.after_load_checkpoint(runner, checkpoint)
    with pytest.raises(ValueError, match="no record of its run"):
        hook.after_load_checkpoint(runner, {})
    runner._resume = False
    hook.after_load_checkpoint(runner, {})
