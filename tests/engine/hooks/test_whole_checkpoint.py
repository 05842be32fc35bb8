"""Checkpoints are whole or not there: runs that are killed while they write, full disks, and what is kept."""

import os
import signal
import tracemalloc
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import runner as mmengine_runner

from xtuner_plugins.engine import WholeCheckpointHook
from xtuner_plugins.engine.hooks.whole_checkpoint import _move_into_place, _written_directly, tidy
from xtuner_plugins.weights.work_dir import newest_checkpoint, read_checkpoint

from ..forked import train_forked
from ..parallel_case import edited_config, logged, write_dataset
from ..run.test_going_on import contents, require_equal

SMALL = 100_000  # bytes; smaller than any checkpoint of the toy model, larger than what is logged


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def case(tmp_path):
    """4 steps, a checkpoint after each, of which one is kept."""
    return dict(config=edited_config(tmp_path, "toy_finetune_lora", save_steps=1, save_total_limit=1))


def during_save(number, do, rank=0):
    """Of the n-th file that a rank saves (from 1) half is written, and then ``do`` is called."""
    if os.environ.get("RANK", "0") != str(rank):
        return

    save, calls = torch.save, []

    def half_way(content, target, *args, **kwargs):
        calls.append(target)
        if len(calls) < number:
            return save(content, target, *args, **kwargs)
        save(content, target, *args, **kwargs)
        os.truncate(target, os.path.getsize(target) // 2)
        do()

    torch.save = half_way


def test_a_file_is_written_without_a_second_copy_of_its_tensors(tmp_path):
    path, content = tmp_path / "weights.pth", {"weight": torch.arange(2**22)}
    tracemalloc.start()
    with _written_directly():
        mmengine_runner.save_checkpoint(content, str(path), file_client_args=None, backend_args=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 < path.stat().st_size
    assert torch.equal(torch.load(path, weights_only=True)["weight"], content["weight"])


def limit_from_the_second_step_on():
    """No file may grow beyond a size: the system refuses the write as it does on a full disk."""
    import resource

    from xtuner_plugins.engine.run.loops import PlannedTrainLoop

    run_iter = PlannedTrainLoop.run_iter

    def limited(loop, batch):
        if loop.iter == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))
        run_iter(loop, batch)

    PlannedTrainLoop.run_iter = limited


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "processes, deepspeed",
    [
        (1, None),
        pytest.param(2, None, marks=pytest.mark.slow),
        pytest.param(2, "deepspeed_zero2", marks=pytest.mark.slow),
        pytest.param(2, "deepspeed_zero3", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_while_it_saves(toy_base, data, case, tmp_path, processes, deepspeed):
    case |= dict(processes=processes, deepspeed=deepspeed)
    whole = train_forked(tmp_path / "whole", toy_base, data, **case)
    assert whole.ok, whole.output[-2000:]
    # DeepSpeed's second rank writes one file per checkpoint, under ZeRO-3 two; a plain file is written by the first.
    number, rank = {None: (2, 0), "deepspeed_zero2": (2, 1), "deepspeed_zero3": (4, 1)}[deepspeed]
    killed = train_forked(tmp_path / "run", toy_base, data, prepare=partial(during_save, number, kill, rank), **case)
    assert -signal.SIGKILL in killed.codes
    assert {path.name for path in (tmp_path / "run").glob("iter_*")} == {"iter_1.pth"}
    assert list((tmp_path / "run").glob(".iter_2.pth.partial"))
    again = train_forked(tmp_path / "run", toy_base, data, extra=("--resume", "auto"), **case)
    assert again.ok, again.output[-2000:]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")[1:]
    assert sorted(path.name for path in (tmp_path / "run").glob(".*")) == []
    assert {path.name for path in (tmp_path / "run").glob("iter_*")} == {"iter_4.pth"}
    require_equal(contents(tmp_path / "run" / "iter_4.pth"), contents(tmp_path / "whole" / "iter_4.pth"))


@pytest.mark.parametrize(
    "processes, deepspeed",
    [
        (1, None),
        pytest.param(2, None, marks=pytest.mark.slow),
        pytest.param(2, "deepspeed_zero2", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(
    toy_base, data, case, tmp_path, processes, deepspeed
):
    case |= dict(processes=processes, deepspeed=deepspeed)
    run = train_forked(tmp_path / "run", toy_base, data, prepare=limit_from_the_second_step_on, **case)
    assert run.codes == [1] * processes, run.output[-3000:]
    [line] = run.errors
    assert f"checkpoint {tmp_path / 'run' / 'iter_2.pth'} could not be written: " in line
    assert f"The last good checkpoint is {tmp_path / 'run' / 'iter_1.pth'}" in line
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if "iter_" in path.name) == ["iter_1.pth"]
    assert read_checkpoint(tmp_path / "run" / "iter_1.pth")["iter"] == 1


class TestReplacingADirectory:
    @staticmethod
    def write(path, content):
        path.mkdir()
        (path / "file").write_text(content)

    def test_a_second_save_of_a_step(self, tmp_path):
        self.write(tmp_path / "iter_1.pth", "old")
        self.write(tmp_path / ".iter_1.pth.partial", "new")
        _move_into_place(tmp_path / ".iter_1.pth.partial", tmp_path / "iter_1.pth")
        assert [path.name for path in tmp_path.iterdir()] == ["iter_1.pth"]
        assert (tmp_path / "iter_1.pth" / "file").read_text() == "new"

    def test_killed_between_the_two_renames(self, tmp_path):
        self.write(tmp_path / ".iter_1.pth.replaced", "old")
        self.write(tmp_path / ".iter_1.pth.partial", "new")
        tidy(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["iter_1.pth"]
        assert (tmp_path / "iter_1.pth" / "file").read_text() == "old"

    def test_killed_before_the_old_one_was_removed(self, tmp_path):
        self.write(tmp_path / ".iter_1.pth.replaced", "old")
        self.write(tmp_path / "iter_1.pth", "new")
        tidy(tmp_path)
        assert (tmp_path / "iter_1.pth" / "file").read_text() == "new" and newest_checkpoint(tmp_path) is None
        assert [path.name for path in tmp_path.iterdir()] == ["iter_1.pth"]


def test_a_checkpoint_of_another_model_is_refused():
    runner, hook = SimpleNamespace(model=torch.nn.Linear(3, 2), optim_wrapper=None), WholeCheckpointHook()
    hook.after_load_checkpoint(runner, {"state_dict": torch.nn.Linear(3, 2).state_dict()})
    hook.after_load_checkpoint(runner, {"module": {"other": torch.ones(1)}})  # the strategy has compared it
    for state, message in (
        ({"weight": torch.ones(2, 3)}, "missing bias"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "scale": torch.ones(1)}, "unknown scale"),
        ({"weight": torch.ones(3, 3), "bias": torch.ones(2)}, r"weight is \(3, 3\), the model has \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=f"another choice of trained parts: {message}"):
            hook.after_load_checkpoint(runner, {"state_dict": state})
