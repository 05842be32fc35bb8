import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub

from xtuner_plugins.engine.runtime import allow_checkpoint_types


def test_mmengine_checkpoints_open_with_weights_only(tmp_path):
    hub = MessageHub("test")
    hub.update_scalar("train/loss", 1.5)
    state = {
        "message_hub": hub.state_dict(),
        "cfg": ConfigDict(a=1),
        "lr": np.float64(0.1),
        "w": torch.ones(2),
    }
    torch.save(state, tmp_path / "iter_1.pth")
    allow_checkpoint_types()
    loaded = torch.load(tmp_path / "iter_1.pth", weights_only=True)
    history = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(history, HistoryBuffer) and history.current() == 1.5 and loaded["lr"] == 0.1


class ReachesGlobals:
    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_prepared_checkpoints_cannot_reach_further(tmp_path):
    torch.save({"x": ReachesGlobals()}, tmp_path / "evil.pth")
    allow_checkpoint_types()
    with pytest.raises((pickle.UnpicklingError, ValueError), match="__init__"):
        torch.load(tmp_path / "evil.pth", weights_only=True)


PROBE = """
import os, types
from xtuner_plugins.engine.runtime import prepare_runtime
assert prepare_runtime("some/base") == prepare_runtime("some/base") == "some/base"
from mmengine.registry import DATASETS, MODELS
assert "VisionLanguageModel" in MODELS.module_dict and "MultimodalDataset" in DATASETS.module_dict
import torch
if not torch.cuda.is_available():
    from xtuner.tools.utils import auto_dtype_of_deepspeed_config
    config = auto_dtype_of_deepspeed_config({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}})
    assert config == {"fp16": {"enabled": False}, "bf16": {"enabled": False}}, config
    import deepspeed.comm.torch
    assert deepspeed.comm.torch.build_shm_op() is None  # a compiler isn't needed
assert os.environ["WORLD_SIZE"] == "1" and int(os.environ["MASTER_PORT"]) > 0
"""


def test_a_prepared_process_knows_our_classes_and_runs_without_gpu():
    finished = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
