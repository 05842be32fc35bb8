"""Rows that several ranks share give the loss and the gradients of rows that one has."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.models.sequence_parallel import check_heads, exchange
from xtuner_plugins.processes import free_port

# Sums of float32 in another order.
TOLERANCE = 1e-6


def run_ranks(base, out, num_ranks):
    """What `sequence_parallel_case` finds on so many ranks."""
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.sequence_parallel_case", str(base), str(out)],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    for process in processes:
        text, _ = process.communicate(timeout=HANGS_AFTER)
        assert process.returncode == 0, text[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.slow
def test_loss_and_gradients_equal_one_process(toy_base, tmp_path):
    """Whole and LoRA, recomputed or not, packs with images and without, pairs: on two ranks and on four.

    The toy LLM has four heads and two of keys, which four ranks repeat.
    """
    alone, failures = run_ranks(toy_base, tmp_path / "1.pt", 1), []
    for num_ranks in (2, 4):
        shared = run_ranks(toy_base, tmp_path / f"{num_ranks}.pt", num_ranks)
        for case, expected in alone.items():
            assert shared[case].keys() == expected.keys()
            for name, value in expected.items():
                # The loss is divided by the weight per rank, and so are the gradients.
                found = shared[case][name] / (num_ranks if name == "loss" or name.startswith("model.") else 1)
                found = found[: len(value)] if name == "sample_losses" else found  # behind them, what fills the row
                error = (found - value).abs().max() / max(1.0, float(value.abs().max()))
                if error > TOLERANCE:
                    failures.append(f"{case} on {num_ranks} ranks: {name} differs by {float(error):.1e}")
    assert not failures, "\n".join(failures)
    assert all(value.abs().max() > 0 for value in alone["full"].values())


def test_transposed_tensors_are_exchanged_as_they_read(tmp_path):
    """A result with the strides of a transposed tensor would hold the same numbers in another order."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parts = torch.arange(24.0).view(1, 4, 6).transpose(1, 2).requires_grad_()
        found = exchange(parts, dist.group.WORLD)
        assert torch.equal(found, parts)
        (gradient,) = torch.autograd.grad((found.transpose(1, 2) * torch.arange(6.0)).sum(), parts)
        assert torch.equal(gradient, torch.arange(6.0)[:, None].expand(6, 4)[None])
    finally:
        dist.destroy_process_group()


def test_heads_are_shared_out_or_refused():
    for heads, kv_heads, num_ranks in ((28, 4, 4), (14, 2, 2), (32, 8, 8), (24, 6, 4), (16, None, 8)):
        check_heads({"num_attention_heads": heads, "num_key_value_heads": kv_heads}, num_ranks)
    for heads, kv_heads, num_ranks, remedy in ((14, 2, 4, "1 or 2"), (28, 4, 8, "1 or 2 or 4"), (25, 5, 2, "1")):
        with pytest.raises(ValueError, match=f"sequence_parallel={num_ranks}: .* set it to {remedy}$"):
            check_heads({"num_attention_heads": heads, "num_key_value_heads": kv_heads}, num_ranks)
