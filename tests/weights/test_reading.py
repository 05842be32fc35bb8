"""Readers: every kind of file gives the same tensors, and files that lie or attack are refused and run nothing."""

import json
import os
import pickle
import struct
import zipfile

import numpy
import pytest
import torch
from safetensors.torch import save_file

from xtuner_plugins.weights.reading import CheckpointError, load_pickle, open_safetensors, open_weights, read_json

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


def example():
    """Tensors of every dtype and of odd shapes, and what looks at a part of another's storage."""
    generator, whole = torch.Generator().manual_seed(0), torch.arange(12.0).view(3, 4)
    tensors = {str(dtype): (torch.rand(3, 4, generator=generator) * 8).to(dtype) for dtype in DTYPES}
    odd = {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "parameter": torch.nn.Parameter(torch.ones(4))}
    return tensors | odd | {"t": whole.t(), "s": whole[1:, 2:], "w": whole, "e": whole[:0], "row": whole[1]}


def assert_same(lazy, tensors):
    assert lazy.keys() == tensors.keys()
    for name, tensor in tensors.items():
        value = lazy[name].read()
        assert value.dtype == tensor.dtype and torch.equal(value, tensor), name


def test_both_kinds_of_files(tmp_path):
    torch.save(example(), tmp_path / "pytorch_model.bin")
    assert_same(open_weights(tmp_path), example())
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in example().items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})  # which counts, then
    assert_same(open_weights(tmp_path), tensors)


def write_shards(folder, **changes):
    folder.mkdir(exist_ok=True)
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    save_file({"a": torch.ones(2)}, folder / first)
    save_file({"b": torch.zeros(3), **changes.pop("held", {})}, folder / second)
    index = {"weight_map": {"a": first, "b": second, **changes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_and_what_is_no_weights(tmp_path):
    assert_same(open_weights(write_shards(tmp_path / "whole")), {"a": torch.ones(2), "b": torch.zeros(3)})
    old, notes = tmp_path / "old", tmp_path / "notes"
    old.mkdir(), notes.mkdir()
    torch.save({"a": torch.ones(2)}, old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (notes / "notes.txt").write_text("x")
    table = [
        ({"b": "model-00003-of-00002.safetensors"}, "lacks model-00003"),
        ({"c": "model-00001-of-00002.safetensors"}, "disagree about 1 tensors, such as c in model-00001"),
        ({"held": {"z": torch.zeros(1)}}, "disagree about 1 tensors, such as z"),
        *(({"b": path}, "outside its own folder") for path in ("../other/model.safetensors", "/etc/passwd", "..", 3)),
        (old, "or one from before torch 1.6: load it there and save it again"),
        (notes, r"it holds: notes\.txt"),
        (tmp_path / "nowhere", "does not exist"),
    ]
    for case, message in table:
        with pytest.raises(CheckpointError, match=message):
            open_weights(write_shards(tmp_path / "case", **case) if isinstance(case, dict) else case)
    (tmp_path / "case" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        open_weights(tmp_path / "case")
    for content in ([1], {}, {"a": 1}, {"state_dict": [1]}, {"state_dict": None}, {"state_dict": {"a": "text"}}):
        torch.save(content, old / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="pytorch_model.bin holds no state dict"):
            open_weights(old)


def header(b=None, **entry):
    first = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **entry}
    text = json.dumps({"a": first, **({"b": b} if b else {})}).encode()
    return struct.pack("<Q", len(text)) + text


def test_lying_safetensors(tmp_path):
    for content in (
        b"",
        b"\xff" * 12,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 10**5) + b"[" * 10**5,
        header(b={"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}) + bytes(24),
        header() + bytes(8),
        *(header(data_offsets=[start, 8]) + bytes(16) for start in (0, -8)),
        *(header(**entry) + bytes(16) for entry in ({"shape": [-4]}, {"dtype": "F8_E4M3"}, {"dtype": "Q3"})),
    ):
        (tmp_path / "m.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="m.safetensors (is not a whole|holds numbers of)"):
            open_safetensors(tmp_path / "m.safetensors")


class Attack:
    """Unpickled, it calls a function."""

    def __init__(self, function, *args):
        self.called = function, args

    def __reduce__(self):
        return self.called


def test_nothing_that_a_pickle_names_is_called(tmp_path):
    """A class of an allowed package gets a stand-in; any other, or another format than torch's, is refused."""
    attack = Attack(os.system, f"touch {tmp_path / 'owned'}")
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": attack}, tmp_path / "named.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(attack))
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("x", "y")
    for name, words in (("named", r"wants to run posix\.system"), ("plain", "not a torch"), ("zip", "not a torch")):
        with pytest.raises(CheckpointError, match=words):
            load_pickle(tmp_path / f"{name}.pth")
    torch.save({"a": torch.ones(1), "b": Attack(numpy.save, str(tmp_path / "owned"), 1)}, tmp_path / "a.pth")
    assert load_pickle(tmp_path / "a.pth")["a"].read().tolist() == [1]
    assert not list(tmp_path.glob("owned*"))


def test_json(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(CheckpointError, match=r"a\.json does not exist"):
        read_json(path)
    assert read_json(path, missing={"a": 1}) == {"a": 1}
    for text, message in (("{", "not readable JSON"), ("[1]", "holds a JSON list, expected an object")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_json(path, missing={})
    with pytest.raises(CheckpointError, match="not readable JSON: .*too long"):
        read_json(tmp_path / ("x" * 300))
