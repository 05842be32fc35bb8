"""A run on a store of S3 ends in time when the store is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.datasets.store_servers import BUCKET, CREDENTIALS, moto_server, upload

from ..parallel_case import ROOT, training, write_dataset

NUM_RECORDS = 400
DATASET = "train_dataloader.dataset"


def num_steps(work_dir):
    """Steps that a run has logged so far."""
    return sum(path.read_text().count('"loss"') for path in work_dir.glob("*/vis_data/scalars.json"))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_store_that_is_killed_ends_the_run_in_time(toy_base, monkeypatch, tmp_path, policy):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with moto_server() as (url, pid):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        path, images = write_dataset(tmp_path / "data", NUM_RECORDS)
        upload(url, images, "images/")
        upload(url, path.parent, "")
        options = {f"{DATASET}.on_bad_sample": policy}
        options["train_dataloader.num_workers"] = 2
        there = (f"s3://{BUCKET}/{path.name}", f"s3://{BUCKET}/images")
        arguments, env = training(tmp_path / "run", toy_base, there, options=options)
        log = tmp_path / "run.log"
        with open(log, "w") as output:
            command = [sys.executable, "tools/train.py", *arguments]
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
        try:
            while num_steps(tmp_path / "run") < 3:
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.2)
            os.kill(pid, signal.SIGKILL)
            assert process.wait(120) != 0  # a read is tried four times
        finally:
            process.kill()
            process.wait()
    output = log.read_text()
    assert "no answer in" in output and f"s3://{BUCKET}/images/" in output
    assert num_steps(tmp_path / "run") < NUM_RECORDS // 4  # in the midst of the epoch
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in output
