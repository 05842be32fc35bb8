"""A run on a store of S3 trains as on files, goes on as on files, and ends in time when the store is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.datasets.store_servers import BUCKET, CREDENTIALS, moto_server, upload

from .parallel_case import ROOT, logged, training, write_dataset

NUM_RECORDS = 400
DATASET = "train_dataloader.dataset"


@pytest.fixture
def start(toy_base, tmp_path):
    """start(name, data, **options) -> a training in a process of its own; its output goes to a file."""
    started = []

    def start(name, data, options=(), extra=()):
        settings = {
            "train_dataloader.num_workers": 2,
            "default_hooks.checkpoint.interval": 2,
            f"{DATASET}.cache_dir": tmp_path / "cache" / name,
            **dict(options),
        }
        arguments, env = training(tmp_path / name, toy_base, data, options=settings, extra=extra)
        with open(tmp_path / f"{name}.log", "w") as output:
            command = [sys.executable, "tools/train.py", *arguments]
            started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """(URL, process id) of a server, in the environment of what is started."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with moto_server() as (url, pid):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield url, pid


def stored(url, path, images):
    """The entries of a data set that has been put into the store."""
    upload(url, images, "images/")
    upload(url, path.parent, "")
    return f"s3://{BUCKET}/{path.name}", f"s3://{BUCKET}/images"


def num_steps(work_dir):
    """Steps that a run has logged so far."""
    return sum(path.read_text().count('"loss"') for path in work_dir.glob("*/vis_data/scalars.json"))


@pytest.mark.slow
def test_same_losses_and_a_resume_as_on_files(start, s3, tmp_path):
    data = write_dataset(tmp_path / "data", 16)
    there = stored(s3[0], *data)
    for name, where in (("files", data), ("store", there)):
        assert start(name, where).wait(900) == 0, (tmp_path / f"{name}.log").read_text()[-2000:]
    expected = logged(tmp_path / "files")
    assert logged(tmp_path / "store") == expected and len(expected) == 4
    resume = ("--resume", str(tmp_path / "store" / "iter_2.pth"))
    assert start("again", there, extra=resume).wait(900) == 0
    assert logged(tmp_path / "again") == expected[2:]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_store_that_is_killed_ends_the_run_in_time(start, s3, tmp_path, policy):
    url, pid = s3
    there = stored(url, *write_dataset(tmp_path / "data", NUM_RECORDS))
    options = {
        f"{DATASET}.on_bad_sample": policy,
        "default_hooks.checkpoint.interval": 1000,
    }
    process, log = start("run", there, options), tmp_path / "run.log"
    while num_steps(tmp_path / "run") < 3:
        assert process.poll() is None, log.read_text()[-2000:]
        time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(300) != 0
    seconds, output = time.monotonic() - killed, log.read_text()
    print(f"{policy}: ended {seconds:.0f} s after the store")
    assert "no answer in" in output and f"s3://{BUCKET}/images/" in output and seconds < 120
    assert num_steps(tmp_path / "run") < NUM_RECORDS // 4  # in the midst of the epoch
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in output
