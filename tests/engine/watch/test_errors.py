"""One line for what ends a run: memory, a rank, a loading process; two nodes are in `launch/test_nodes.py`."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from xtuner_plugins.engine.launch import train_process
from xtuner_plugins.engine.launch.train_process import user_message
from xtuner_plugins.engine.run.loops import TrainingStopped
from xtuner_plugins.engine.watch.errors import NO_MEMORY, OutOfMemory, lost_process, name_sources, naming, peak_gib
from xtuner_plugins.engine.watch.stopping import COMMAND
from xtuner_plugins.settings import ConfigError
from xtuner_plugins.weights.work_dir import newest_checkpoint, read_checkpoint

from ..forked import fault, write_dataset

BATCH = {"num_tiles": torch.tensor([3, 1]), "sources": ["a.jsonl:1", "a.jsonl:9"]}
MASK = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
PADDED = {**BATCH, "input_ids": torch.zeros(2, 5), "attention_mask": MASK}
PACKED = {**BATCH, "input_ids": torch.zeros(1, 7), "cu_seqlens": torch.tensor([0, 5, 7])}
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Read error [10.0.0.2]:2788: Connection reset by peer"


def test_the_batch_and_what_helps_are_named():
    for error in (torch.OutOfMemoryError("CUDA out of memory.\nmore"), RuntimeError(NO_MEMORY)):
        for batch, setting in ((PADDED, "lower batch_size (and"), (PACKED, "lower pack_tokens")):
            with pytest.raises(OutOfMemory) as caught, naming([batch]):
                raise error
            message = str(caught.value)
            assert "2 samples of 7 tokens and 4 tiles, from the samples a.jsonl:1, a.jsonl:9 (" in message
            assert setting in message and "gradient_checkpointing" in message and "\n" not in message
    with pytest.raises(RuntimeError, match="shapes"), naming([PADDED]):
        raise RuntimeError("shapes")
    assert name_sources([f"a:{row}" for row in range(11)]).endswith("a:7 and 3 more")
    assert name_sources(["a:1"] * 8) == ", ".join(["a:1"] * 8) and name_sources([]) == "(none named)"


def test_one_line_names_the_reason_and_the_way_on(monkeypatch):
    monkeypatch.setenv(COMMAND, "python tools/train.py configs/a.py")
    monkeypatch.setenv("NODE_RANK", "1")
    for error, said in (
        (RuntimeError(GLOO), "(Read error [10.0.0.2]:2788: Connection reset by peer)"),
        (dist.DistBackendError("NCCL error in: a.cpp:1\nremote process exited"), "(NCCL error in: a.cpp:1 remote"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "is killed by signal: Killed: "),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "exited unexpectedly: usually"),
    ):
        message = lost_process(error)
        assert said in message and message.endswith("NODE_RANK=1 python tools/train.py configs/a.py --resume")
        assert len(message.splitlines()) == 1
    caught = "Caught RecordError in DataLoader worker process 0.\nTraceback\n{}: a.png can't be decoded\n"
    assert user_message(RuntimeError(caught.format("xtuner_plugins.errors.RecordError"))) == "a.png can't be decoded"
    assert (
        user_message(RuntimeError(caught.format("ZeroDivisionError"))) is user_message(RuntimeError("shapes")) is None
    )


def test_statuses_and_who_speaks(monkeypatch, capsys):
    """Where all ranks end of the same, the first one speaks; what no user can fix keeps its traceback."""
    for rank, error, status, said in (
        ("0", TrainingStopped("why"), 1, "error (rank 0): why (XTUNER_PLUGINS_TRACEBACK=1 shows the traceback)\n"),
        ("1", TrainingStopped("why"), 1, ""),
        ("1", ConfigError("why"), 2, "error (rank 1): why (XTUNER_PLUGINS_TRACEBACK=1 shows the traceback)\n"),
        ("0", KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted outside of training: nothing to save\n"),
        ("1", ZeroDivisionError("why"), 1, "NoneType: None\n"),  # it isn't being handled here
    ):
        monkeypatch.setenv("RANK", rank)
        assert train_process._tell(error) == status and capsys.readouterr().err == said


def test_the_peak_is_of_the_gpu_or_of_the_process(monkeypatch):
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=3 << 20))  # KiB
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 5 << 30)
    for has_gpu, gib in ((False, 3), (True, 5)):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        assert peak_gib() == gib


def kill_worker(*_):
    """As a system short of memory does it."""
    [worker] = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


def test_a_run_whose_worker_is_killed_ends_in_one_line(train, tmp_path):
    killed = fault("engine.run.loops.PlannedTrainLoop.run_iter", 3, kill_worker)
    case = dict(num_workers=1, save_steps=1, prepare=killed, data=write_dataset(tmp_path / "data", 64))
    run = train("run", "toy_finetune_lora", codes=(1,), **case)
    assert len(run.errors) == 1 and "a process that loads data" in run.errors[0] and "Traceback" not in run.output
    assert read_checkpoint(newest_checkpoint(run.work_dir))["iter"] >= 2  # loaded batches may still be trained
