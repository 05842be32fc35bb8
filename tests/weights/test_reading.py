"""Readers: every kind of file gives the same tensors, and files that lie or attack are refused."""

import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from xtuner_plugins.weights.reading import CheckpointError, load_pickle, open_safetensors, open_weights, read_json

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
DTYPES += [torch.int64, torch.uint8, torch.bool]


def example():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"a.{str(d)[6:]}": (torch.rand(3, 4, generator=generator) * 8).to(d) for d in DTYPES}
    return {**tensors, "scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4)}


def same(lazy, tensor):
    value = lazy.read()
    if (value.dtype, value.shape) != (tensor.dtype, tensor.shape):
        return False
    found, expected = (part.contiguous().view(torch.uint8) if part.dim() else part for part in (value, tensor))
    return torch.equal(found, expected)


def test_safetensors_and_views_in_pickles(tmp_path):
    """Transposed tensors and slices are stored with the whole storage that they look at."""
    save_file(example(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    held = open_weights(tmp_path)
    assert held.keys() == example().keys() and all(same(held[k], v) for k, v in example().items())
    (tmp_path / "model.safetensors").unlink()
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"t": whole.t(), "s": whole[1:, 2:], "w": whole, "e": whole[:0]}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert all(same(lazy, tensors[name]) for name, lazy in open_weights(tmp_path).items())


def write_shards(folder, **changes):
    folder.mkdir(exist_ok=True)
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    save_file({"a": torch.ones(2)}, folder / first)
    save_file({"b": torch.zeros(3), **changes.pop("held", {})}, folder / second)
    index = {"weight_map": {"a": first, "b": second, **changes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_and_what_is_no_weights(tmp_path):
    held = open_weights(write_shards(tmp_path / "whole"))
    assert held["a"].read().tolist() == [1, 1] and held["b"].read().tolist() == [0, 0, 0]
    old, notes = tmp_path / "old", tmp_path / "notes"
    old.mkdir(), notes.mkdir()
    torch.save({"a": torch.ones(2)}, old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (notes / "notes.txt").write_text("x")
    table = [
        ({"b": "model-00003-of-00002.safetensors"}, "lacks model-00003"),
        ({"c": "model-00001-of-00002.safetensors"}, "disagree about 1 tensors, such as c in model-00001"),
        ({"held": {"z": torch.zeros(1)}}, "disagree about 1 tensors, such as z"),
        *(({"b": path}, "outside its own folder") for path in ("../other/model.safetensors", "/etc/passwd", 3)),
        (old, "or one from before torch 1.6: load it there and save it again"),
        (notes, r"it holds: notes\.txt"),
        (tmp_path / "nowhere", "does not exist"),
    ]
    for case, message in table:
        with pytest.raises(CheckpointError, match=message):
            open_weights(write_shards(tmp_path / "case", **case) if isinstance(case, dict) else case)


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
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_plain_pickle_and_plain_zip(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Attack(tmp_path / "owned")))
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("x", "y")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(CheckpointError):
            load_pickle(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_torch_files_without_a_state_dict(tmp_path):
    """What the entry holds is a stranger's choice."""
    for content in ([1], {}, {"a": 1}, {"state_dict": [1]}, {"state_dict": None}, {"state_dict": {"a": "text"}}):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="pytorch_model.bin holds no state dict"):
            open_weights(tmp_path)


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
