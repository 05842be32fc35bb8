"""What --resume and load_from take, and what they say of broken, half-written and foreign checkpoints."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from xtuner_plugins.engine.run.resume import settle_start
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.work_dir import read_checkpoint


def settled(work_dir, given=None, **cfg):
    """The checkpoint that a run in one process resumes from."""
    args = SimpleNamespace(resume=given, work_dir=str(work_dir), deepspeed=None)
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


# What lies at the path, and what is said of it.
WRONG = [
    *(
        (lambda path, share=share: cut(write(path), share), "the newest whole .* is .*iter_2.pth")
        for share in (0, 0.99)
    ),
    (lambda path: None, "does not exist; the newest"),
    (lambda path: write(path, meta=None), "was not written by a training run"),
    (lambda path: write(path, state_dict=None), "holds no state dict"),
    (lambda path: torch.save([1, 2], path), "holds no state dict"),
    (lambda path: path.write_text("hello"), "no PyTorch file|iter_4.pth"),
    (lambda path: path.mkdir(), "no DeepSpeed checkpoint"),
    (lambda path: write(path, optimizer=None), "no optimizer state"),
]


def test_what_a_run_goes_on_from_and_what_not(tmp_path):
    """``auto`` is the newest whole one or none; only the name counts in the pointer of a folder that was moved."""
    assert settled(tmp_path, "auto") is settled(tmp_path, resume=True) is None
    write(tmp_path / "iter_2.pth"), write(tmp_path / "iter_4.pth")
    (tmp_path / "last_checkpoint").write_text("moved/from/elsewhere/iter_2.pth")
    assert settled(tmp_path, "auto") == str(tmp_path / "iter_2.pth")
    for number, (make, says) in enumerate(WRONG):
        (folder := tmp_path / str(number)).mkdir()
        write(folder / "iter_2.pth")
        make(path := folder / "iter_4.pth")
        with pytest.raises(CheckpointError, match=f"^--resume {path}.*({says})"):
            settled(folder, str(path))
    assert settled(folder, load_from=str(path)) is None  # weights are enough
    with pytest.raises(CheckpointError, match="^load_from none.pth.* does not exist"):
        settled(folder, load_from="none.pth")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["zero2", "zero3"])
def test_deepspeed_directories(train, layout):
    """Half-written, of other trained parts: each is one line."""
    run = train("run", "toy_finetune_lora", save_steps=2, layout=layout)
    said = read_checkpoint(saved := run.saved(2))
    assert said["iter"] == 2 and said["has_optimizer"]
    case = dict(layout=layout, extra=("--resume", str(saved)), codes=(2, 1, -9))
    assert "another model or another choice of trained parts" in train("full", **case).errors[0]
    cut(next(saved.glob("*rank_1*optim_states.pt")), 0.5)
    broken = train("broken", "toy_finetune_lora", **case)
    assert f"the newest whole checkpoint is {run.saved(4)}" in broken.errors[0]
