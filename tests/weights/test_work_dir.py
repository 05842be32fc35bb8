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


class TestNewest:
    def test_the_pointer_decides(self, tmp_path):
        write(tmp_path / "iter_2.pth", seconds=100), write(tmp_path / "iter_4.pth")
        (tmp_path / "last_checkpoint").write_text("moved/from/elsewhere/iter_2.pth")
        assert newest_checkpoint(tmp_path) == tmp_path / "iter_2.pth"

    def test_without_it_the_time_of_writing(self, tmp_path):
        write(tmp_path / "iter_900.pth", seconds=100), write(tmp_path / "iter_4.pth")
        assert newest_checkpoint(tmp_path) == tmp_path / "iter_4.pth"

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_a_broken_one_is_passed_over(self, tmp_path, share):
        broken = write(tmp_path / "iter_4.pth")
        os.truncate(broken, int(broken.stat().st_size * share))
        write(tmp_path / "iter_2.pth", seconds=100)
        (tmp_path / "last_checkpoint").write_text(str(broken))
        assert newest_checkpoint(tmp_path) == tmp_path / "iter_2.pth"

    def test_none(self, tmp_path):
        assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "missing") is None


def test_facts_of_a_checkpoint(tmp_path):
    facts = read_checkpoint(write(tmp_path / "iter_4.pth", step=7))
    unsaid = {"plan": None, "record": None}
    assert facts == {"iter": 7, "has_optimizer": True, "any_strategy": False, **unsaid}
    with pytest.raises(CheckpointError, match="missing.pth does not exist"):
        read_checkpoint(tmp_path / "missing.pth")
