"""Checkpoints hold the preprocessing of their run, and no run goes on with another."""

import pytest
from mmengine.config import ConfigDict

from tests.conftest import ROOT
from tests.test_preprocessing import TRAINED, describe
from xtuner_plugins.engine import PreprocessingLockHook


def test_resuming_with_another_template_is_refused(toy_base, tmp_path):
    class Runner:
        _resume, cfg = True, ConfigDict(model=dict(base=str(toy_base)))

    runner, checkpoint = Runner(), {}
    lock = describe(toy_base, tmp_path, **TRAINED)
    hook = PreprocessingLockHook()
    hook._describe = lambda runner: lock
    hook.before_save_checkpoint(runner, checkpoint)
    hook.after_load_checkpoint(runner, checkpoint)
    hook._describe = lambda runner: describe(toy_base, tmp_path)
    with pytest.raises(ValueError, match="1 to 3 tiles .*Hermes-2 there, 1 to 12 tiles .*internvl2_5 here"):
        hook.after_load_checkpoint(runner, checkpoint)
    runner._resume = False
    hook.after_load_checkpoint(runner, checkpoint)


def test_every_run_locks():
    text = (ROOT / "configs" / "_base_" / "run.py").read_text()
    assert "dict(type=PreprocessingLockHook)" in text
