"""The benchmark for a GPU runs from end to end on a CPU at a tiny size, and says so where there is no GPU."""

import json
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT

SCRIPT = str(ROOT / "benchmarks" / "bench_gpu.py")


@pytest.mark.slow
def test_a_dry_run_measures_all_stages_in_both_ways(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--dry-run", "--out", str(tmp_path)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bench_gpu.json").read_text())
    rows = {(row["stage"], row["way"]): row for row in result["rows"]}
    assert len(rows) == 8 and not [row["error"] for row in result["rows"] if "error" in row]
    assert all(row["tokens_per_second"] > 0 and row["mfu"] is None and row["steps"] == 2 for row in result["rows"])
    for stage in ("warm-up", "lora", "full"):  # the same weights and samples; dropout begins with B = 0
        ours, official = rows[stage, "packs"]["first_loss"], rows[stage, "padded"]["first_loss"]
        assert ours == pytest.approx(official, rel=1e-5)
    table = (tmp_path / "bench_gpu.md").read_text()
    assert table in done.stdout and table.count("\n| ") == 9 and f"torch {torch.__version__}" in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr == "error: PyTorch finds no CUDA GPU here; --dry-run runs the script on a CPU\n"
