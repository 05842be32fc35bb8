"""What is adjusted with and without a GPU, and what no result of a run shows of it."""

import os
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from xtuner_plugins.engine.run import runtime

ALWAYS = ("save_directly", "_describe_single_process", "_use_our_deepspeed_strategy")
ON_CPU = ("_use_gloo_without_gpu", "_build_no_cpu_op", "_return_freed_memory")


@pytest.mark.parametrize("has_gpu", [False, True])
def test_every_adjustment_is_made(monkeypatch, has_gpu):
    made = []
    for name in (*ALWAYS, *ON_CPU):
        monkeypatch.setattr(runtime, name, lambda name=name: made.append(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    runtime.adjust_stack()
    assert {*made} == {*ALWAYS, *(() if has_gpu else ON_CPU)} and len(made) == len({*made})
    assert (os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == "expandable_segments:True") == has_gpu


def test_ranks_leave_the_process_group_together(monkeypatch):
    for has_group, then in ((False, []), (True, ["barrier", "destroy_process_group"])):
        monkeypatch.setattr(runtime, "dist", called := mock.Mock(**{"is_initialized.return_value": has_group}))
        runtime.leave_process_group()
        assert [name for name, *_ in called.method_calls] == ["is_initialized", *then]


def test_blocks_above_4_mib_are_given_back(monkeypatch):
    called = []
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(mallopt=lambda *args: called.append(args)))
    runtime._return_freed_memory()
    assert called == [(-3, 4 * 1024**2)]  # M_MMAP_THRESHOLD of malloc.h


def test_a_run_without_launcher_is_one_process(monkeypatch):
    own = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for given in ({}, {"RANK": "3"}, {"WORLD_SIZE": "4"}):
        monkeypatch.setattr(os, "environ", env := dict(given))
        runtime._describe_single_process()
        port = env.pop("MASTER_PORT", None)
        assert env == (given or own) and (port is None) == bool(given)
