"""What a rank says when another one, or its loading worker, is gone; with two nodes in tests/cli/test_nodes.py."""

import functools
import multiprocessing
import os
import signal

import pytest
import torch.distributed as dist

from xtuner_plugins.checkpoints.work_dir import newest_checkpoint, read_checkpoint
from xtuner_plugins.engine.lost_processes import lost_rank_message, lost_worker_message
from xtuner_plugins.engine.stopping import COMMAND
from xtuner_plugins.toy.small_data import write_dataset

from .forked import train_forked

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Read error [10.0.0.2]:2788: Connection reset by peer"


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError(GLOO), "(Read error [10.0.0.2]:2788: Connection reset by peer)"),
        (dist.DistBackendError("NCCL error in: a.cpp:1\nremote process exited"), "(NCCL error in: a.cpp:1 remote"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "(failed to recv, got 0 bytes)"),
    ],
)
def test_one_line_names_the_reason_and_the_way_on(error, reason, monkeypatch):
    monkeypatch.setenv(COMMAND, "python tools/train.py configs/a.py")
    monkeypatch.setenv("NODE_RANK", "1")
    message = lost_rank_message(error)
    assert reason in message and message.endswith("NODE_RANK=1 python tools/train.py configs/a.py --resume")
    assert len(message.splitlines()) == 1


def test_other_errors_are_none_of_it():
    error = RuntimeError("shape mismatch")
    assert lost_rank_message(error) is None and lost_worker_message(error) is None


@pytest.mark.parametrize(
    "error, how",
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "is killed by signal: Killed:"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "exited unexpectedly:"),
    ],
)
def test_a_worker_that_ended(error, how):
    message = lost_worker_message(RuntimeError(error))
    assert message.startswith(f"a process that loads data {how}") and "num_workers" in message


def kill_worker(step):
    """The process that loads data is killed before a step, as a system short of memory does it."""
    from xtuner_plugins.engine.loops import PlannedTrainLoop

    run_iter = PlannedTrainLoop.run_iter

    def killing(loop, batch):
        if loop.iter == step:
            [worker] = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        run_iter(loop, batch)

    PlannedTrainLoop.run_iter = killing


def test_a_run_whose_worker_is_killed_ends_in_one_line(toy_base, tmp_path):
    data = write_dataset(tmp_path / "data", 64)
    options = {"train_dataloader.num_workers": 1, "default_hooks.checkpoint.interval": 1}
    case = dict(options=options, config="configs/toy/toy_finetune_lora.py", prepare=functools.partial(kill_worker, 2))
    run = train_forked(tmp_path / "run", toy_base, data, **case)
    assert run.codes == [1], run.output[-2000:]
    assert len(run.errors) == 1 and "a process that loads data" in run.errors[0] and "Traceback" not in run.output
    assert read_checkpoint(newest_checkpoint(tmp_path / "run"))["iter"] >= 2  # loaded batches may still be trained
