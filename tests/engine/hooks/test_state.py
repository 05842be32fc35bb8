"""Checkpoints hold plan position and preprocessing of their run; no run goes on with another preprocessing."""

from types import SimpleNamespace

import pytest
from mmengine.config import ConfigDict

from tests.test_preprocessing import TRAINED, describe
from xtuner_plugins import preprocessing
from xtuner_plugins.engine import PlannedTrainLoop, StateHook
from xtuner_plugins.settings import read_config


def test_a_position_and_another_template(toy_base, tmp_path):
    runner = SimpleNamespace(_resume=True, cfg=ConfigDict(model=dict(base=str(toy_base))))
    runner.train_loop = PlannedTrainLoop.__new__(PlannedTrainLoop)
    position = SimpleNamespace(plan=SimpleNamespace(is_seekable=True), position=lambda: {"epoch": 1})
    runner.train_loop.dataloader_iterator = position
    lock, hook, checkpoint = describe(toy_base, tmp_path, **TRAINED), StateHook(), {}
    hook._describe = lambda runner: lock
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint == {"plan": {"epoch": 1}, preprocessing.KEY: lock}
    hook.after_load_checkpoint(runner, checkpoint)
    assert runner.train_loop.resume_at == {"epoch": 1}
    hook._describe = lambda runner: describe(toy_base, tmp_path)
    with pytest.raises(ValueError, match="1 to 3 tiles .*Hermes-2 there, 1 to 12 tiles .*internvl2_5 here"):
        hook.after_load_checkpoint(runner, checkpoint)
    runner._resume = False
    hook.after_load_checkpoint(runner, checkpoint)


def test_every_run_has_it():
    assert StateHook in [hook["type"] for hook in read_config("toy_finetune_lora").custom_hooks]
