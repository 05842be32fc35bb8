"""Readers: every kind of file gives the same tensors, and files that lie or attack are refused."""

import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from xtuner_plugins.checkpoints.checkpoint import open_checkpoint
from xtuner_plugins.checkpoints.io.reader import (
    CheckpointError,
    load_pickle,
    open_safetensors,
    open_weights,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn]
DTYPES += [torch.int64, torch.uint8, torch.bool]


def example():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"a.{str(d)[6:]}": (torch.rand(3, 4, generator=generator) * 8).to(d) for d in DTYPES}
    return {**tensors, "scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4)}


def same(lazy, tensor):
    value = lazy.read()
    if (value.dtype, value.shape) != (tensor.dtype, tensor.shape):
        return False
    found, expected = (part.view(torch.uint8) if part.dim() else part for part in (value, tensor))
    return torch.equal(found, expected)


def test_safetensors(tmp_path):
    save_file(example(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    held = open_weights(tmp_path)
    assert held.keys() == example().keys()
    assert all(same(held[k], v) for k, v in example().items())


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


def test_legacy_torch_file(tmp_path):
    tensors = {k: v for k, v in example().items() if "float8" not in k}  # younger than the old format
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    held = open_weights(tmp_path)
    assert held.keys() == tensors.keys() and all(same(held[k], v) for k, v in tensors.items())


def write_shards(folder, **changes):
    save_file({"a": torch.ones(2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", **changes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards(tmp_path):
    held = open_weights(write_shards(tmp_path))
    assert held["a"].read().tolist() == [1, 1] and held["b"].read().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"b": "model-00003-of-00002.safetensors"}, "lacks the shard model-00003"),
        ({"c": "model-00001-of-00002.safetensors"}, "says that c is in"),
        ({"b": "../other/model.safetensors"}, "outside its own folder"),
        ({"b": "/etc/passwd"}, "outside its own folder"),
    ],
)
def test_bad_index(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        open_weights(write_shards(tmp_path, **changes))


def test_index_that_hides_a_tensor(tmp_path):
    write_shards(tmp_path)
    save_file({"b": torch.zeros(3), "z": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="doesn't list z"):
        open_weights(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 12])
def test_stub_of_a_file(tmp_path, size):
    (tmp_path / "m.safetensors").write_bytes(b"\xff" * size)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        open_safetensors(tmp_path / "m.safetensors")


def test_cut_off_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="is cut off: tensor a"):
        open_safetensors(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "Q3", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
    ],
)
def test_lying_header(tmp_path, entry):
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(CheckpointError, match="tensor a"):
        open_safetensors(tmp_path / "m.safetensors")


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


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


def test_plain_pickle_and_plain_zip(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Attack(tmp_path / "owned")))
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("x", "y")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(CheckpointError):
            load_pickle(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_not_a_state_dict(tmp_path):
    torch.save({"state_dict": {"a": 3}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="a is not a tensor"):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("opener, pattern", [(open_weights, "does not exist"), (open_checkpoint, "does not exist")])
def test_missing(tmp_path, opener, pattern):
    with pytest.raises(CheckpointError, match=pattern):
        opener(tmp_path / "nowhere")


def test_directory_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"it holds: notes\.txt"):
        open_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"it holds: notes\.txt"):
        open_checkpoint(tmp_path)
