"""What training leaves at a path, opened whatever it is; in a work directory, the newest that is whole."""

import os

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from tests.weights.test_reading import assert_same, example
from xtuner_plugins.weights.checkpoint import open_checkpoint
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.work_dir import newest_checkpoint, read_checkpoint
from xtuner_plugins.weights.writer import write_json


def test_what_is_opened(tmp_path):
    history = HistoryBuffer()
    history.update(2.0)
    others = {"meta": ConfigDict(a=1), "message_hub": {"h": history}, "record": {"base": 1}}
    torch.save({"state_dict": example(), **others}, tmp_path / "iter_1.pth")
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path / "iter_1.pth")
    assert (opened.kind, opened.record, opened.files) == ("mmengine", {"base": 1}, [tmp_path / "iter_1.pth"])
    assert_same(opened.tensors, example())
    for path in (tmp_path, tmp_path / "model.safetensors"):
        opened = open_checkpoint(path)
        assert (opened.kind, opened.record, opened.files) == ("weights", None, [tmp_path / "model.safetensors"])
        assert_same(opened.tensors, {"a": torch.ones(2)})


def test_refusals(tmp_path):
    (tmp_path / "adapter").mkdir()
    write_json(tmp_path / "adapter" / "adapter_config.json", {"peft_type": "LORA"})
    torch.save({"state_dict": {"a": 3}}, tmp_path / "x.pth")
    for name, words in {
        "adapter": "is a PEFT adapter; .*merge_and_unload",
        "nowhere": "does not exist",
        "x.pth": "a is not a tensor",
        ".": r"it holds: adapter, x\.pth",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(tmp_path / name)
    for content in ({"state_dict": {}}, {"state_dict": {}, "meta": [7]}, [7]):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="x.pth was not written by a training run"):
            read_checkpoint(tmp_path / "x.pth")
    for name, words in {"nowhere": "does not exist", "adapter": "is a directory without"}.items():
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(tmp_path / name)


def write(path, seconds=0):
    """A checkpoint of step 7; ``seconds`` is its age."""
    torch.save({"meta": {"iter": 7}, "state_dict": {"w": torch.ones(3000)}, "optimizer": {}}, path)
    os.utime(path, (1e9 - seconds, 1e9 - seconds))
    return path


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    """The pointer decides, by its name alone; without it the time of writing. Broken ones are passed over."""
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "missing") is None
    older, newer = write(tmp_path / "iter_900.pth", seconds=100), write(tmp_path / "iter_4.pth")
    write(tmp_path / "other.pth", seconds=-100)
    assert newest_checkpoint(tmp_path) == newer
    assert read_checkpoint(newer) == {"iter": 7, "has_optimizer": True, "plan": None, "record": None}
    (tmp_path / "last_checkpoint").write_text("moved/from/elsewhere/iter_900.pth")
    assert newest_checkpoint(tmp_path) == older
    for share in (0.99, 0.5, 0.0):
        os.truncate(older, int(older.stat().st_size * share))
        assert newest_checkpoint(tmp_path) == newer
