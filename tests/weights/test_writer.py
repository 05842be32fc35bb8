"""Streams what the safetensors library reads back; a directory appears whole or not at all."""

import pytest
import torch
from safetensors.torch import load_file

from xtuner_plugins.weights import writer
from xtuner_plugins.weights.lazy import MemoryTensor


def plan(**tensors):
    return {k: MemoryTensor(v) for k, v in tensors.items()}


def test_round_trip_with_mixed_widths(tmp_path):
    tensors = dict(a=torch.ones(3, dtype=torch.bfloat16), b=torch.rand(2, 3), c=torch.arange(5), d=torch.zeros(0, 3))
    seen = []
    writer.write_weights(tmp_path, plan(**tensors), max_shard_size=10**9, advance=seen.append)
    held = load_file(tmp_path / "model.safetensors")
    assert held.keys() == tensors.keys() and all(torch.equal(held[k], v) for k, v in tensors.items())
    assert sum(seen) == sum(v.nbytes for v in tensors.values())


def test_shard_limit(tmp_path):
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    files = writer.write_weights(tmp_path, plan(**tensors), max_shard_size=800)
    assert [f.name for f in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    files = writer.write_weights(tmp_path, plan(big=torch.ones(900), small=torch.ones(1)), max_shard_size=800)
    assert [list(load_file(f)) for f in files] == [["big"], ["small"]]  # too large for any shard: alone in one


def test_sizes():
    table = {"4GB": 4 * 10**9, "2GiB": 2**31, "500mb": 5 * 10**8, 77: 77, "8 b": 8, ".5KiB": 512}
    assert {text: writer.parse_size(text) for text in table} == table
    for text in ("", "GB", "-1GB", "4 apples", "0", "4K", "4iB", "4KI"):
        with pytest.raises(ValueError, match="is not a size"):
            writer.parse_size(text)
    assert [writer.format_size(size) for size in (999, 1000, 2.5e6, 4.1e9)] == ["999 B", "1.0 kB", "2.5 MB", "4.1 GB"]
