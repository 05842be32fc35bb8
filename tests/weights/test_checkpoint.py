"""What training leaves at a path, opened whatever it is."""

import pytest
import torch
from safetensors.torch import save_file

from tests.weights.test_reading import Attack, example, same
from xtuner_plugins.weights.checkpoint import open_checkpoint
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.writer import write_json


def test_pth_with_views_and_foreign_objects(tmp_path):
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    base = torch.arange(100.0)
    state = {
        **example(),
        "view": base[10:40].view(5, 6),
        "transposed": base.view(10, 10).t(),
        "parameter": torch.nn.Parameter(torch.ones(4)),
    }
    history = HistoryBuffer()
    history.update(2.0)
    torch.save({"state_dict": state, "meta": ConfigDict(a=1), "message_hub": {"h": history}}, tmp_path / "iter_1.pth")
    opened = open_checkpoint(tmp_path / "iter_1.pth")
    assert opened.kind == "mmengine" and opened.tensors.keys() == state.keys()
    assert all(same(opened.tensors[k], v.detach().contiguous()) for k, v in state.items())


def test_pickle_that_runs_code_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": Attack(tmp_path / "owned")}, tmp_path / "iter_1.pth")
    with pytest.raises(CheckpointError, match=r"wants to run posix\.system"):
        open_checkpoint(tmp_path / "iter_1.pth")
    assert not (tmp_path / "owned").exists()


def test_allowed_package_is_not_imported_or_called(tmp_path):
    """A class of an allowed package gets a stand-in: its constructor never runs."""

    class Loud:
        def __reduce__(self):
            import numpy

            return numpy.save, (str(tmp_path / "owned.npy"), 1)

    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": Loud()}, tmp_path / "iter_1.pth")
    assert open_checkpoint(tmp_path / "iter_1.pth").tensors["a"].read().tolist() == [1]
    assert not (tmp_path / "owned.npy").exists()


def test_weights(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        opened = open_checkpoint(path)
        assert opened.kind == "weights" and opened.files == [tmp_path / "model.safetensors"]
        assert opened.tensors["a"].read().tolist() == [1, 1] and opened.preprocessing is None


def test_refusals(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(adapter / "adapter_config.json", {"peft_type": "LORA"})
    save_file({"a": torch.ones(2)}, adapter / "adapter_model.safetensors")
    torch.save({"state_dict": {"a": 3}}, tmp_path / "x.pth")
    for name, words in {
        "adapter": "is a PEFT adapter; .*merge_and_unload",
        "nowhere": "does not exist",
        "x.pth": "a is not a tensor",
        ".": r"it holds: adapter, x\.pth",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(tmp_path / name)
