"""Adjustments of the runtime that no run in a test would miss; the others are met by each run in several processes."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from mmengine.logging import HistoryBuffer

from tests.conftest import ROOT
from xtuner_plugins.engine.run.runtime import allow_checkpoint_types


class ReachesGlobals:
    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_prepared_checkpoints_cannot_reach_further(tmp_path):
    torch.save({"x": ReachesGlobals()}, tmp_path / "evil.pth")
    allow_checkpoint_types()
    with pytest.raises((pickle.UnpicklingError, ValueError), match="__init__"):
        torch.load(tmp_path / "evil.pth", weights_only=True)


# Compiled on a machine with a compiler: that takes a minute, and a killed run leaves a lock that hangs the next one.
OP = """
import deepspeed
from deepspeed.accelerator import get_accelerator
builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
deepspeed.ops.__compatible_ops__[builder.NAME] = True
type(builder).load = lambda self, verbose=True: print("met")
deepspeed.init_distributed(dist_backend="gloo")
"""
# As in a step: blocks of 12 MiB between smaller ones that stay, after one of 31 MiB was freed.
MEMORY = """
import psutil, torch
torch.ones(31 << 18)
before = psutil.Process().memory_info().rss
kept = [(torch.ones(3 << 20), torch.ones(1 << 15)) for _ in range(20)]
kept = [small for _, small in kept]
if psutil.Process().memory_info().rss - before > 100 << 20:
    print("met")
"""
PREPARED = "from xtuner_plugins.engine.launch.entry import prepare_runtime\nassert prepare_runtime('base') == 'base'\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="defects of a machine without GPU")
@pytest.mark.parametrize("defect", [OP, MEMORY], ids=["op", "memory"])
def test_a_defect_is_met_without_us_alone(defect):
    """One that is gone after an upgrade: take its adjustment out of the runtime."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for prepare, is_met in (("", True), (PREPARED, False)):
        command = [sys.executable, "-c", prepare + defect]
        env = {**os.environ, **alone, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and ("met" in done.stdout.split()) == is_met, done.stderr[-3000:]
