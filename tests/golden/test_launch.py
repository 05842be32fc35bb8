"""The comparison of a launch with one process: equal for two ranks, and not for another learning rate."""

import pytest


@pytest.mark.slow
def test_two_ranks_are_equal_and_another_rate_is_not(run_tool):
    cases = (
        ("NPROC_PER_NODE=2 python {train}", "2", 0, "losses equal but for the order of sums"),
        ("python {train} optim_wrapper.optimizer.lr=1e-2", "1", 1, "losses another training"),
    )
    for launch, ranks, status, said in cases:
        done = run_tool("-m", "tests.golden.launch", launch, "--ranks", ranks, "--runs", "pretrain")
        assert done.returncode == status and said in done.stdout, done.stdout + done.stderr[-3000:]
