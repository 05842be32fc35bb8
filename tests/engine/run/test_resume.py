"""What --resume and load_from take, and what they say of broken, half-written and foreign checkpoints."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from xtuner_plugins.engine.run.param_groups import build_adamw
from xtuner_plugins.engine.run.resume import settle_start
from xtuner_plugins.engine.run.strategy import require_same_parameters
from xtuner_plugins.settings import ConfigError
from xtuner_plugins.weights.reading import CheckpointError


def settled(work_dir, given=None, deepspeed=None, **cfg):
    """The checkpoint that a run in one process resumes from."""
    args = SimpleNamespace(resume=given, work_dir=str(work_dir), deepspeed=deepspeed)
    settle_start(cfg := Config(cfg), args)
    assert bool(args.resume) == bool(cfg.get("resume"))
    return args.resume


def write(path, **content):
    content = {"meta": {"iter": 4}, "state_dict": {"w": torch.ones(3000)}, "optimizer": {}, **content}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def cut(path, share):
    os.truncate(path, int(path.stat().st_size * share))
    return path


def test_what_a_run_goes_on_from_and_what_not(tmp_path):
    """``auto`` is the newest whole one or none; what is broken is told by tests/weights/test_checkpoint.py."""
    assert settled(tmp_path, "auto") is settled(tmp_path, resume=True) is None
    for content, says in (
        ({"state_dict": None}, "no whole checkpoint is beside it"),
        ({}, "the newest whole .* is .*iter_2.pth"),
    ):
        write(tmp_path / "iter_2.pth", **content)
        cut(path := write(tmp_path / "iter_4.pth"), 0.99)
        with pytest.raises(CheckpointError, match=f"^--resume {path}: .*; {says}"):
            settled(tmp_path, str(path))
    assert settled(tmp_path, "auto") == settled(tmp_path, resume=True) == str(tmp_path / "iter_2.pth")
    write(path, optimizer=None)
    with pytest.raises(CheckpointError, match=f"^--resume {path}: holds no optimizer state .*load_from={path}"):
        settled(tmp_path, resume=True, load_from=str(path))
    assert settled(tmp_path, load_from=str(path)) is None  # weights are enough
    with pytest.raises(CheckpointError, match="^load_from none.pth.* does not exist"):
        settled(tmp_path, load_from="none.pth")


def test_optimizers_whose_state_would_not_come_back(tmp_path):
    """Other optimizers are named as in MMEngine, and ours by itself or its path."""
    paged = type("PagedAdamW32bit", (), {})
    for kind, deepspeed, says in (
        *((kind, "zero2", None) for kind in ("AdamW", "xtuner_plugins.engine.build_adamw", build_adamw)),
        ("AdamW8bit", "zero2", "'AdamW8bit' can't run under --deepspeed"),
        (paged, None, "set it to 'AdamW32bit', or use --deepspeed deepspeed_zero2_offload"),
    ):
        with pytest.raises(ConfigError, match=says) if says else nullcontext():
            settled(tmp_path, deepspeed=deepspeed, optim_wrapper={"optimizer": {"type": kind}})


def test_many_other_parameters_are_counted():
    found = {f"w{number}": (1,) for number in range(6)}
    with pytest.raises(CheckpointError, match=r": missing w0; .*missing w4; and 1 more\. Go on .* or export it"):
        require_same_parameters(found, {})


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["zero2", "zero3"])
def test_deepspeed_directories(train, layout):
    """Half-written, of other trained parts: each is one line."""
    run = train("run", "toy_finetune_lora", save_steps=2, layout=layout)
    case = dict(layout=layout, extra=("--resume", str(run.saved(2))), codes=(2, 1, -9))
    assert "another model or another choice of trained parts" in train("full", **case).errors[0]
    cut(next(run.saved(2).glob("*rank_1*optim_states.pt")), 0.5)
    broken = train("broken", "toy_finetune_lora", **case)
    assert f"the newest whole checkpoint is {run.saved(4)}" in broken.errors[0]
