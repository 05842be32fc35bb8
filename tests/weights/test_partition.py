"""A base loaded under ZeRO-3: no rank ever holds it whole, and the model is the same."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.conftest import HANGS_AFTER, ROOT
from tests.weights.training import chat_inputs, logits
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.partition import over_ranks, partition_dtype


@pytest.mark.slow
def test_two_ranks(toy_base, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.weights.partition_case", str(toy_base), str(tmp_path / "logits.pt")],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        text, _ = process.communicate(timeout=HANGS_AFTER)
        assert process.returncode == 0, text[-3000:]
    model = load_model(toy_base, dtype=torch.float32)
    model.img_context_token_id = 508
    expected = logits(model, chat_inputs(model))
    # the same weights to the bit, the same arithmetic
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)


def test_other_stages_do_not_partition():
    with pytest.raises(ValueError, match="stage is 2"):
        over_ranks({"zero_optimization": {"stage": 2}})


@pytest.mark.parametrize(
    "config, dtype",
    [
        ({"bf16": {"enabled": True}}, torch.bfloat16),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": False}}, torch.float16),
        ({"bf16": {"enabled": False}}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_dtype_that_deepspeed_computes_in(config, dtype):
    assert partition_dtype(config) == dtype
