"""Streams what the safetensors library reads back; a directory appears whole or not at all."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from xtuner_plugins.checkpoints import writer
from xtuner_plugins.checkpoints.reader import CheckpointError
from xtuner_plugins.checkpoints.tensors import MemoryTensor


def plan(**tensors):
    return {k: (MemoryTensor(v), v.dtype) for k, v in tensors.items()}


def test_round_trip_with_mixed_widths(tmp_path):
    tensors = dict(a=torch.ones(3, dtype=torch.bfloat16), b=torch.rand(2, 3), c=torch.arange(5), d=torch.zeros(0, 3))
    seen = []
    writer.write_weights(tmp_path, plan(**tensors), max_shard_size=10**9, advance=seen.append)
    held = load_file(tmp_path / "model.safetensors")
    assert held.keys() == tensors.keys() and all(torch.equal(held[k], v) for k, v in tensors.items())
    assert sum(seen) == sum(v.nbytes for v in tensors.values())


def test_casts(tmp_path):
    value = torch.rand(4, 4)
    writer.write_weights(tmp_path, {"a": (MemoryTensor(value), torch.bfloat16)}, max_shard_size=10**9)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], value.bfloat16())


def test_shard_limit(tmp_path):
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    files = writer.write_weights(tmp_path, plan(**tensors), max_shard_size=800)
    assert [f.name for f in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert writer.plan_shards(plan(big=torch.ones(900), small=torch.ones(1)), 800) == [["big"], ["small"]]


@pytest.mark.parametrize("text, num_bytes", [("4GB", 4 * 10**9), ("2GiB", 2**31), ("500mb", 5 * 10**8), (77, 77)])
def test_sizes(text, num_bytes):
    assert writer.parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 apples", "0"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="is not a size"):
        writer.parse_size(text)


def test_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        with writer.staged_directory(tmp_path / "out") as stage:
            (stage / "model.safetensors").write_bytes(b"x")
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_replaces_only_when_complete(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("x")
    with writer.staged_directory(out) as stage:
        writer.write_config(stage, {"a": 1})
        assert (out / "old").exists()
    assert [p.name for p in out.iterdir()] == ["config.json"] and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_leftover_of_a_killed_run_is_removed(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from xtuner_plugins.checkpoints.writer import staged_directory, write_config\n"
        "with staged_directory(Path(sys.argv[1])) as stage:\n"
        "    write_config(stage, {}); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-") and not (left / "config.json").exists()
    with writer.staged_directory(tmp_path / "out") as stage:
        writer.write_config(stage, {})
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_odd_targets(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("x")
    else:
        os.symlink(tmp_path, out)
    with pytest.raises(CheckpointError, match="not a plain directory"):
        writer.check_target(out, force=True, inputs={})
