"""The short form of `benchmarks/kill_runs.py`: one kill in each phase of a run and of its export."""

import pytest

from tests.conftest import HANGS_AFTER


@pytest.mark.release
def test_a_killed_run_ends_as_an_undisturbed_one(run_tool, tmp_path):
    command = ["benchmarks/kill_runs.py", "--kills", "5", "--out", tmp_path / "kills"]
    done = run_tool(*command, timeout=2 * HANGS_AFTER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "tensors of weights and optimizer that differ: 0" in done.stdout and "ok      processes left: 0" in done.stdout
    )
