"""AdamW as the configs build it, others by their names in MMEngine, and which checkpoints each goes on from."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from xtuner_plugins.engine.hooks.run_contract import describe_optimizer
from xtuner_plugins.engine.run.param_groups import build_adamw
from xtuner_plugins.engine.run.resume import settle_start
from xtuner_plugins.settings import ConfigError

from ..parallel_case import require_equal


def test_optimizers_and_those_whose_state_would_not_come_back(monkeypatch):
    """PyTorch has the fused kernel on a CPU, too."""
    for has_gpu, shown in ((False, "AdamW of torch"), (True, "AdamW of torch, fused")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert describe_optimizer(build_adamw([torch.nn.Parameter(torch.zeros(1))])) == shown
    for kind, deepspeed, says in (
        *((kind, "zero2", None) for kind in ("AdamW", "xtuner_plugins.engine.build_adamw", build_adamw)),
        ("AdamW8bit", "zero2", "'AdamW8bit' can't run under --deepspeed"),
        (type("PagedAdamW32bit", (), {}), None, "set it to 'AdamW32bit', or use --deepspeed deepspeed_zero2_offload"),
    ):
        cfg, args = {"optim_wrapper": {"optimizer": {"type": kind}}}, {"resume": None, "work_dir": "none"}
        with pytest.raises(ConfigError, match=says) if says else nullcontext():
            settle_start(Config(cfg), SimpleNamespace(deepspeed=deepspeed, **args))


def test_a_run_in_eight_bits_resumes_exactly(train):
    case = dict(optimizer="AdamW8bit", save_steps=2)
    whole = train("run", **case)
    resumed = train("resumed", extra=("--resume", str(whole.saved(2))), **case)
    assert "  optimizer: AdamW8bit of bitsandbytes\n" in whole.output
    left, right = (torch.load(run.saved(4), weights_only=False) for run in (whole, resumed))
    require_equal(left["state_dict"], right["state_dict"])
