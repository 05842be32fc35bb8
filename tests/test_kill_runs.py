"""The short form of `benchmarks/kill_runs.py`: one process and two ranks, a kill in each phase of run and export."""

import pytest

from tests.conftest import HANGS_AFTER


@pytest.mark.release
def test_a_killed_run_ends_as_an_undisturbed_one(run_tool, tmp_path):
    words = ["--cases", "plain-lora,zero2-full", "--kills", "10", "--out", tmp_path / "kills"]
    done = run_tool("benchmarks/kill_runs.py", *words, timeout=4 * HANGS_AFTER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tensors of weights and optimizer that differ: 0" in done.stdout
    assert "ok      processes left: 0" in done.stdout
