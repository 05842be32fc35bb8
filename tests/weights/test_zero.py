"""DeepSpeed directories: real ones, made by DeepSpeed on the CPU with one and two ranks, read without it."""

import shutil

import pytest
import torch

from tests.weights.training import run_ranks
from xtuner_plugins.export.export import export
from xtuner_plugins.weights.checkpoint import open_checkpoint
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.zero import _stage_1_2, _stage_3


def run_zero(stage, base, out, *, lora=False, exclude_frozen=True, world_size=1):
    run_ranks("tests.weights.zero_case", stage, base, out, int(lora), int(exclude_frozen), ranks=world_size)
    return out


def check(path, tmp_path, *, lora):
    opened = open_checkpoint(path)
    assert opened.kind == "deepspeed"
    reference = torch.load(path.parent / "reference.pt", weights_only=True)
    assert reference.keys() <= opened.tensors.keys()
    for name, value in reference.items():
        read = opened.tensors[name].read()
        assert read.dtype == torch.float32 and torch.equal(read, value), name
    assert opened.record is not None
    summary = export(None, path, tmp_path / "out")
    assert summary["num_merged"] == (6 if lora else 0)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("stage, ranks, frozen", [(1, 2, 0), (2, 2, 0), (3, 1, 0), (3, 2, 0), (2, 2, 1), (3, 2, 1)])
def test_real_directories(toy_base, tmp_path, stage, ranks, frozen):
    lora = stage != 2 and not frozen
    options = dict(lora=lora, exclude_frozen=not frozen, world_size=ranks)
    check(run_zero(stage, toy_base, tmp_path / "iter_1.pth", **options), tmp_path, lora=lora)


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


def test_layouts(tmp_path):
    """Of stages 1 and 2: a vector over two ranks, the second tensor across the border, padded to 8; and of stage 3."""
    groups = [{"a": (2, 2), "b": (3,)}]
    table = [
        (_stage_1_2, [[lazy(0, 1, 2, 3)], [lazy(4, 5, 6, -1)]], [4, 5, 6], [[lazy(0, 1)], [lazy(2, 3)]]),
        # Groups may cut a piece.
        (_stage_3, [[lazy(0, 1), lazy(10, 11)], [lazy(2, 3), lazy(12, -1)]], [10, 11, 12], [[lazy(0, 1)]] * 2),
    ]
    for unflatten, flat, b, short in table:
        tensors = unflatten(flat, groups, tmp_path)
        assert tensors["a"].read().tolist() == [[0, 1], [2, 3]] and tensors["b"].read().tolist() == b
        with pytest.raises(CheckpointError, match="different saves"):
            unflatten(flat, [{"a": (2, 2)}], tmp_path)
        with pytest.raises(CheckpointError, match="end before b"):
            unflatten(short, groups, tmp_path)


def test_stage_3_without_optimizer_states(tmp_path):
    torch.save({"module": {}}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="ZeRO-3 checkpoint without"):
        open_checkpoint(tmp_path)
