"""Runs `version_probe.py` under some interpreter and compares its report with another one."""

import json
import os
import subprocess
from pathlib import Path

import torch

from tests.conftest import HANGS_AFTER

PROBE = Path(__file__).with_name("version_probe.py")
# Differences between releases are those of fp32 rounding in the LLM: logits are of order 1 to 10 here.
LOGITS_TOLERANCE = 1e-5


def run_probe(python, directory, work_dir):
    """The report of a probe of `directory`, run by the interpreter `python` from an empty folder without network.

    Raises:
        AssertionError: The probe failed; the message holds its output.
    """
    work_dir = Path(work_dir)
    work_dir.mkdir(parents=True)
    report = work_dir / "report.json"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    env |= dict(HF_HOME=str(work_dir / "hf"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    command = [str(python), str(PROBE), str(directory), str(work_dir), str(report)]
    done = subprocess.run(command, cwd=work_dir, env=env, capture_output=True, text=True, timeout=HANGS_AFTER)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return json.loads(report.read_text(encoding="utf-8"))


def compare_reports(report, reference):
    """Asserts that two releases agree; returns the largest difference of logits."""
    for name in ("names", "token_ids", "answers"):
        assert report[name] == reference[name], name
    difference = (torch.tensor(report["forward"]) - torch.tensor(reference["forward"])).abs().max().item()
    assert difference < LOGITS_TOLERANCE and abs(report["loss"] - reference["loss"]) < LOGITS_TOLERANCE, difference
    return difference
