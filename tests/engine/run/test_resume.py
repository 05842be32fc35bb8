"""What --resume and load_from take, and what they say of broken, half-written and foreign checkpoints."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from xtuner_plugins.engine.launch.train_process import name_newest
from xtuner_plugins.engine.run.resume import settle_start
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.work_dir import read_checkpoint

from ..forked import train_forked
from ..parallel_case import edited_config, train, write_dataset

OURS = (sys.executable, "tools/train.py")


def resume(value, work_dir, deepspeed=None):
    """The checkpoint that a run in one process resumes from."""
    args = SimpleNamespace(resume=str(value), work_dir=str(work_dir), deepspeed=deepspeed)
    settle_start(Config(), args)
    return args.resume


def write(path, step=4, **more):
    content = {"meta": {"iter": step, "seed": 7}, "state_dict": {"w": torch.ones(3000)}, "optimizer": {}, **more}
    torch.save(content, path)
    return path


def cut(path, share=0.5):
    os.truncate(path, int(path.stat().st_size * share))
    return path


def aged(path, seconds):
    os.utime(path, (1e9 - seconds, 1e9 - seconds))
    return path


class TestAuto:
    def test_the_newest_whole_one(self, tmp_path):
        write(tmp_path / "iter_2.pth"), write(tmp_path / "iter_4.pth")
        (tmp_path / "last_checkpoint").write_text("moved/from/elsewhere/iter_2.pth")
        assert resume("auto", tmp_path) == str(tmp_path / "iter_2.pth")

    def test_none(self, tmp_path):
        assert resume("auto", tmp_path) is None


class TestRefused:
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_cut_short(self, tmp_path, share):
        path = cut(write(tmp_path / "iter_4.pth"), share)
        good = write(tmp_path / "iter_2.pth")
        with pytest.raises(CheckpointError, match=f"iter_4.pth.*the newest whole checkpoint is {good}"):
            resume(path, tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(CheckpointError, match="does not exist; no whole checkpoint is beside it"):
            resume(tmp_path / "nope.pth", tmp_path)

    @pytest.mark.parametrize("content", [{"w": torch.ones(2)}, {"state_dict": {"w": torch.ones(2)}}, [1, 2]])
    def test_foreign(self, tmp_path, content):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match="was not written by a training run"):
            resume(tmp_path / "model.pth", tmp_path)

    def test_no_torch_file(self, tmp_path):
        (tmp_path / "model.pth").write_text("hello")
        with pytest.raises(CheckpointError, match=r"model\.pth"):
            resume(tmp_path / "model.pth", tmp_path)

    def test_a_directory_of_something_else(self, tmp_path):
        (tmp_path / "iter_4.pth").mkdir()
        with pytest.raises(CheckpointError, match="no DeepSpeed checkpoint"):
            resume(tmp_path / "iter_4.pth", tmp_path)

    def test_no_optimizer(self, tmp_path):
        path = write(tmp_path / "iter_4.pth")
        content = torch.load(path)
        del content["optimizer"]
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="no optimizer state"):
            resume(path, tmp_path)

    def test_a_plain_file_without_names_under_deepspeed(self, tmp_path):
        path = write(tmp_path / "iter_4.pth")
        with pytest.raises(CheckpointError, match="resume without --deepspeed, or begin a new run .* load_from="):
            resume(path, tmp_path, deepspeed="deepspeed_zero2")
        named = write(tmp_path / "iter_6.pth", optimizer_names=["w"])
        assert resume(named, tmp_path, deepspeed="deepspeed_zero2") == str(named)


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--resume"], ["--resume=auto"]),
        (["--resume", "--seed", "7"], ["--resume=auto", "--seed", "7"]),
        (["--resume", "a.pth", "--seed", "7"], ["--resume", "a.pth", "--seed", "7"]),
        (["--resume=a.pth"], ["--resume=a.pth"]),
    ],
)
def test_resume_without_a_value(words, expected):
    assert name_newest(["train", "c.py", *words]) == ["train", "c.py", *expected]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", ["deepspeed_zero2", "deepspeed_zero3"])
def test_deepspeed_directories(toy_base, data, tmp_path, deepspeed):
    """Half-written, of other trained parts: each is one line."""
    lora = edited_config(tmp_path, "toy_finetune_lora", save_steps=2)
    case = dict(processes=2, deepspeed=deepspeed)
    run = train_forked(tmp_path / "run", toy_base, data, config=lora, **case)
    assert run.ok, run.output[-2000:]
    saved = tmp_path / "run" / "iter_2.pth"
    expected = {"iter": 2, "has_optimizer": True, "any_strategy": True, "is_adamw": None}
    assert read_checkpoint(saved) | expected == read_checkpoint(saved)  # and its plan
    resume = ("--resume", str(saved))
    full = train_forked(tmp_path / "full", toy_base, data, extra=resume, **case)
    assert 1 in full.codes and "another model or another choice of trained parts" in full.errors[0]
    cut(next(saved.glob("*rank_1*optim_states.pt")))
    broken = train_forked(tmp_path / "broken", toy_base, data, config=lora, extra=resume, **case)
    assert 1 in broken.codes and f"the newest whole checkpoint is {tmp_path / 'run' / 'iter_4.pth'}" in broken.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("command", [OURS, ("xtuner", "train")])
def test_a_broken_checkpoint_ends_the_command_in_a_line_that_names_a_good_one(toy_base, data, tmp_path, command):
    good, broken = write(tmp_path / "iter_2.pth"), cut(write(tmp_path / "iter_4.pth"))
    extra = ("--resume", str(broken))
    run = train(tmp_path / "run", toy_base, data, command=command, extra=extra)
    line = next(line for line in run.stderr.splitlines() if f"--resume {broken}" in line)
    assert f"the newest whole checkpoint is {good}" in line
    assert not (tmp_path / "run").exists()
    if command is OURS:  # XTuner's own command ends with status 0 whatever happens
        assert run.returncode != 0 and "Traceback" not in run.stderr
