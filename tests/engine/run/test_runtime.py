import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from mmengine.logging import HistoryBuffer

from xtuner_plugins.engine.run.runtime import allow_checkpoint_types

from ..parallel_case import ROOT
from ..runtime_probe import PROBES

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ReachesGlobals:
    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_prepared_checkpoints_cannot_reach_further(tmp_path):
    torch.save({"x": ReachesGlobals()}, tmp_path / "evil.pth")
    allow_checkpoint_types()
    with pytest.raises((pickle.UnpicklingError, ValueError), match="__init__"):
        torch.load(tmp_path / "evil.pth", weights_only=True)


def defects(*arguments):
    """The defects that a fresh process meets, and what it wrote about them."""
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.engine.runtime_probe", *arguments],
        cwd=ROOT,
        env=env | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1]), finished.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="most of these are defects of a machine without GPU")
class TestDefectsOfTheStack:
    """Each adjustment of the runtime: a fresh process meets the defect without it, and doesn't with it."""

    def test_none_is_met_in_a_prepared_process(self):
        found, said = defects("prepared")
        assert found == [], said[-3000:]

    @pytest.mark.slow
    def test_every_one_is_still_there_without_us(self):
        """One that is gone after an upgrade: take its adjustment out of the runtime."""
        found, said = defects()
        assert found == [probe.__name__ for probe in PROBES], said[-3000:]
