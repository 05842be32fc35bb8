"""What --resume and load_from take, and what they say of broken, half-written and foreign checkpoints."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from xtuner_plugins.engine.run.resume import settle_start
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.work_dir import read_checkpoint

from ..parallel_case import train as command

OURS = (sys.executable, "tools/train.py")


def resume(value, work_dir):
    """The checkpoint that a run in one process resumes from."""
    args = SimpleNamespace(resume=str(value), work_dir=str(work_dir), deepspeed=None)
    settle_start(Config(), args)
    return args.resume


def write(path, step=4, **more):
    content = {"meta": {"iter": step, "seed": 7}, "state_dict": {"w": torch.ones(3000)}, "optimizer": {}, **more}
    torch.save(content, path)
    return path


def cut(path, share=0.5):
    os.truncate(path, int(path.stat().st_size * share))
    return path


def test_auto_is_the_newest_whole_one_or_none(tmp_path):
    assert resume("auto", tmp_path) is None
    write(tmp_path / "iter_2.pth"), write(tmp_path / "iter_4.pth")
    (tmp_path / "last_checkpoint").write_text("moved/from/elsewhere/iter_2.pth")
    assert resume("auto", tmp_path) == str(tmp_path / "iter_2.pth")


# What lies at the path, and what is said of it.
WRONG = {
    "empty": (lambda path: cut(write(path), 0.0), "the newest whole checkpoint is .*iter_2.pth"),
    "cut short": (lambda path: cut(write(path), 0.99), "the newest whole checkpoint is .*iter_2.pth"),
    "missing": (lambda path: None, "does not exist; the newest"),
    "foreign": (lambda path: torch.save({"w": torch.ones(2)}, path), "was not written by a training run"),
    "weights": (lambda path: torch.save({"state_dict": {}}, path), "was not written by a training run"),
    "a list": (lambda path: torch.save([1, 2], path), "was not written by a training run"),
    "a text": (lambda path: path.write_text("hello"), "no PyTorch file|iter_4.pth"),
    "a directory": (lambda path: path.mkdir(), "no DeepSpeed checkpoint"),
    "no optimizer": (
        lambda path: torch.save({"meta": {"iter": 4}, "state_dict": {}}, path),
        "holds no optimizer state",
    ),
}


def test_what_no_run_goes_on_from(tmp_path):
    for name, (make, says) in WRONG.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder / "iter_2.pth")
        make(folder / "iter_4.pth")
        with pytest.raises(CheckpointError, match=f"^--resume {folder}/iter_4.pth.*({says})"):
            resume(folder / "iter_4.pth", folder)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_directories(train, stage):
    """Half-written, of other trained parts: each is one line."""
    case = dict(processes=2, deepspeed=f"deepspeed_zero{stage}")
    run = train("run", "toy_finetune_lora", save_steps=2, **case)
    saved = run.work_dir / "iter_2.pth"
    expected = {"iter": 2, "has_optimizer": True}
    assert read_checkpoint(saved) | expected == read_checkpoint(saved)  # and its plan
    case |= dict(extra=("--resume", str(saved)), codes=(2, 1, -9))
    full = train("full", **case)
    assert "another model or another choice of trained parts" in full.errors[0]
    cut(next(saved.glob("*rank_1*optim_states.pt")))
    broken = train("broken", "toy_finetune_lora", **case)
    assert f"the newest whole checkpoint is {run.work_dir / 'iter_4.pth'}" in broken.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("words", [OURS, ("xtuner", "train")])
def test_a_broken_checkpoint_ends_the_command_in_a_line_that_names_a_good_one(toy_base, data, tmp_path, words):
    good, broken = write(tmp_path / "iter_2.pth"), cut(write(tmp_path / "iter_4.pth"))
    run = command(tmp_path / "run", toy_base, data, command=words, extra=("--resume", str(broken)))
    line = next(line for line in run.stderr.splitlines() if f"--resume {broken}" in line)
    assert f"the newest whole checkpoint is {good}" in line
    assert not (tmp_path / "run").exists()
    if words is OURS:  # XTuner's own command ends with status 0 whatever happens
        assert run.returncode != 0 and "Traceback" not in run.stderr
