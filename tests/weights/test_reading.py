"""Readers: every kind of file gives the same tensors, and files that lie or attack are refused and run nothing."""

import json
import os
import pickle
import struct
import zipfile
from unittest import mock

import numpy
import torch
from safetensors.torch import load_file

from xtuner_plugins.weights import writer
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.reading import load_pickle, open_safetensors, open_weights, read_json

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


def test_files_are_read_as_they_were_written(tmp_path):
    torch.save(example(), tmp_path / "pytorch_model.bin")
    assert_same(open_weights(tmp_path), example())
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in example().items()}
    writer.write_weights(tmp_path, {name: MemoryTensor(tensor) for name, tensor in tensors.items()})
    assert_same(open_weights(tmp_path), tensors)  # of two kinds the newer counts
    held = load_file(tmp_path / "model.safetensors")
    assert held.keys() == tensors.keys() and all(torch.equal(held[name], tensors[name]) for name in held)


INDEX = "model.safetensors.index.json"


def write_shards(folder, sizes=(200, 300), limit=800, **changes):
    """Tensors of so many numbers, each full of its own number; the index gets other entries."""
    folder.mkdir(exist_ok=True)
    tensors = {f"t{n}": torch.full((size,), float(n)) for n, size in enumerate(sizes)}
    plan = {name: MemoryTensor(tensor) for name, tensor in tensors.items()}
    with mock.patch.object(writer, "SHARD_BYTES", limit):
        writer.write_weights(folder, plan)
    where = read_json(folder / INDEX)
    where["weight_map"] |= changes
    writer.write_json(folder / INDEX, where)
    return tensors, sorted(file.name for file in folder.glob("*.safetensors"))


def test_shards_and_what_is_no_weights(tmp_path, refused):
    tensors, files = write_shards(tmp_path / "five", [100] * 5)
    assert files == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert_same(open_weights(tmp_path / "five"), tensors)
    _, files = write_shards(tmp_path / "large", [900, 1])  # too large for any shard: alone in one
    assert [list(open_safetensors(tmp_path / "large" / file)) for file in files] == [["t0"], ["t1"]]
    old, notes, case = (tmp_path / name for name in ("old", "notes", "case"))
    old.mkdir(), notes.mkdir()
    torch.save({"a": torch.ones(2)}, old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (notes / "notes.txt").write_text("x")
    table = [
        (old, "is not a torch checkpoint, of torch 1.6 or newer"),
        (notes, r"it holds: notes\.txt"),
        (tmp_path / "nowhere", "does not exist"),
        ({"t1": "model-00003-of-00002.safetensors"}, "lacks model-00003"),
        ({"c": "model-00001-of-00002.safetensors"}, "disagree about 1 tensors, such as c in model-00001"),
        ({"t1": "model-00001-of-00002.safetensors"}, "disagree about 1 tensors, such as t1 in model-00001"),
        *(({"t1": path}, "outside its own folder") for path in ("../other/model.safetensors", "/etc/passwd", "..", 3)),
    ]
    for given, words in table:
        if isinstance(given, dict):
            write_shards(case, **given)
        refused(words, open_weights, case if isinstance(given, dict) else given)
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": [1]}'):
        (case / INDEX).write_text(text)
        refused("has no weight_map", open_weights, case)
    for content in ([1], {}, {"a": 1}, {"state_dict": [1]}, {"state_dict": None}, {"state_dict": {"a": "text"}}):
        torch.save(content, old / "pytorch_model.bin")
        refused("pytorch_model.bin holds no state dict", open_weights, old)


def test_json(tmp_path, refused):
    assert read_json(tmp_path / "a.json", missing={"a": 1}) == {"a": 1}
    writer.write_json(tmp_path / "b.json", {"a": "你"})
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == '{\n  "a": "你"\n}\n'
    for text, words in (("{", "a.json is not readable JSON"), ("[1]", "holds a JSON list, expected an object")):
        (tmp_path / "a.json").write_text(text)
        refused(words, read_json, tmp_path / "a.json")
    refused("not readable JSON: .*No such file", read_json, tmp_path / "c.json")
    refused("not readable JSON: .*too long", read_json, tmp_path / ("x" * 300), missing={})


def header(b=None, **entry):
    first = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **entry}
    text = json.dumps({"a": first, **({"b": b} if b else {})}).encode()
    return struct.pack("<Q", len(text)) + text


def test_lying_safetensors(tmp_path, refused):
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
        refused("m.safetensors is not a whole", open_safetensors, tmp_path / "m.safetensors")


class Attack:
    """Unpickled, it calls a function."""

    def __init__(self, function, *args):
        self.called = function, args

    def __reduce__(self):
        return self.called


def test_nothing_that_a_pickle_names_is_called(tmp_path, refused):
    """A class of an allowed package gets a stand-in; any other, or another format than torch's, is refused."""
    attack = Attack(os.system, f"touch {tmp_path / 'owned'}")
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": attack}, tmp_path / "named.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(attack))
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("x", "y")
    for name, words in (("named", r"wants to run posix\.system"), ("plain", "not a torch"), ("zip", "not a torch")):
        refused(words, load_pickle, tmp_path / f"{name}.pth")
    torch.save({"a": torch.ones(1), "b": Attack(numpy.save, str(tmp_path / "owned"), 1)}, tmp_path / "a.pth")
    assert load_pickle(tmp_path / "a.pth")["a"].read().tolist() == [1]
    assert not list(tmp_path.glob("owned*"))
