"""What a run left in its work directory is found: the newest whole checkpoint, and the config."""

import os

import pytest
import torch

from xtuner_plugins.weights.errors import CheckpointError
from xtuner_plugins.weights.work_dir import newest_checkpoint, read_checkpoint


def write(path, step=4, seconds=0):
    """A checkpoint; ``seconds`` is its age."""
    torch.save({"meta": {"iter": step}, "state_dict": {"w": torch.ones(3000)}, "optimizer": {}}, path)
    os.utime(path, (1e9 - seconds, 1e9 - seconds))
    return path


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    """The pointer decides, by its name alone; without it the time of writing. Broken ones are passed over."""
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "missing") is None
    older, newer = write(tmp_path / "iter_900.pth", seconds=100), write(tmp_path / "iter_4.pth")
    assert newest_checkpoint(tmp_path) == newer
    (tmp_path / "last_checkpoint").write_text("moved/from/elsewhere/iter_900.pth")
    assert newest_checkpoint(tmp_path) == older
    for share in (0.99, 0.5, 0.0):
        os.truncate(older, int(older.stat().st_size * share))
        assert newest_checkpoint(tmp_path) == newer


def test_facts_of_a_checkpoint(tmp_path):
    facts = read_checkpoint(write(tmp_path / "iter_4.pth", step=7))
    assert facts == {"iter": 7, "has_optimizer": True, "plan": None, "record": None}
    with pytest.raises(CheckpointError, match="missing.pth does not exist"):
        read_checkpoint(tmp_path / "missing.pth")
