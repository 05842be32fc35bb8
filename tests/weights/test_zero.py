"""DeepSpeed directories: real ones, made by DeepSpeed on the CPU with one and two ranks, read without it."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from tests.conftest import HANGS_AFTER, ROOT
from tests.weights.training import LORA, write_config
from xtuner_plugins.export.export import export
from xtuner_plugins.weights.checkpoint import open_checkpoint
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.zero import _stage_1_2, _stage_3


def run_zero(stage, base, out, *, lora=False, exclude_frozen=True, world_size=1):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = []
    for rank in range(world_size):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        case = [stage, base, out, int(lora), int(exclude_frozen)]
        args = [sys.executable, "-m", "tests.weights.zero_case", *case]
        processes.append(
            subprocess.Popen(
                [str(a) for a in args], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    for process in processes:
        text, _ = process.communicate(timeout=HANGS_AFTER)
        assert process.returncode == 0, text[-3000:]
    return out


def check(path, base, tmp_path, *, lora):
    opened = open_checkpoint(path)
    assert opened.kind == "deepspeed"
    reference = torch.load(path.parent / "reference.pt", weights_only=True)
    assert reference.keys() <= opened.tensors.keys()
    for name, value in reference.items():
        read = opened.tensors[name].read()
        assert read.dtype == torch.float32 and torch.equal(read, value), name
    settings = dict(llm_lora=LORA) if lora else {}
    config = write_config(tmp_path / "config.py", base, **settings)
    summary = export(config, path, tmp_path / "out")
    assert summary["num_merged"] == (6 if lora else 0)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("stage, world_size", [(1, 2), (2, 2), (3, 1), (3, 2)])
def test_real_directories(toy_base, tmp_path, stage, world_size):
    lora = stage != 2
    path = run_zero(stage, toy_base, tmp_path / "iter_1.pth", lora=lora, world_size=world_size)
    check(path, toy_base, tmp_path, lora=lora)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_parameters_included(toy_base, tmp_path, stage):
    path = run_zero(stage, toy_base, tmp_path / "iter_1.pth", exclude_frozen=False, world_size=2)
    check(path, toy_base, tmp_path, lora=False)


@pytest.mark.slow
def test_lost_rank_and_mixed_saves(toy_base, tmp_path):
    path = run_zero(2, toy_base, tmp_path / "iter_1.pth", world_size=2)
    lost = shutil.copytree(path, tmp_path / "lost")
    next(lost.glob("*rank_1*optim_states.pt")).unlink()
    with pytest.raises(CheckpointError, match=r"saved by 2 ranks but holds 1 \*_optim_states"):
        open_checkpoint(lost)
    (tmp_path / "latest").write_text("iter_1.pth")
    assert open_checkpoint(tmp_path).tensors.keys() == open_checkpoint(path).tensors.keys()
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(CheckpointError, match="elsewhere"):
        open_checkpoint(tmp_path)


def lazy(*numbers):
    return MemoryTensor(torch.tensor(numbers, dtype=torch.float32))


def test_layout_of_stages_1_and_2(tmp_path):
    """A vector of two tensors over two ranks, the second one across the border, padded to 8."""
    groups = [{"a": (2, 2), "b": (3,)}]
    tensors = _stage_1_2([[lazy(0, 1, 2, 3)], [lazy(4, 5, 6, -1)]], groups, tmp_path)
    assert tensors["a"].read().tolist() == [[0, 1], [2, 3]]
    assert tensors["b"].read().tolist() == [4, 5, 6]
    with pytest.raises(CheckpointError, match="different saves"):
        _stage_1_2([[lazy(0, 1, 2, 3)], [lazy(4, 5, 6, -1)]], [{"a": (2, 2)}], tmp_path)
    with pytest.raises(CheckpointError, match="end before b"):
        _stage_1_2([[lazy(0, 1)], [lazy(2, 3)]], groups, tmp_path)


def test_layout_of_stage_3(tmp_path):
    """Each tensor split by itself, its last piece padded; groups may cut a piece."""
    rank0 = [lazy(0, 1), lazy(10, 11)]
    rank1 = [lazy(2, 3), lazy(12, -1)]
    tensors = _stage_3([rank0, rank1], [{"a": (2, 2), "b": (3,)}], tmp_path)
    assert tensors["a"].read().tolist() == [[0, 1], [2, 3]]
    assert tensors["b"].read().tolist() == [10, 11, 12]
    with pytest.raises(CheckpointError, match="different saves"):
        _stage_3([rank0, rank1], [{"a": (2, 2)}], tmp_path)


def test_stage_3_without_optimizer_states(tmp_path):
    torch.save({"module": {}}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="ZeRO-3 checkpoint without"):
        open_checkpoint(tmp_path)
