"""The processes of a node: what becomes of signals, of statuses, and of those that are left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from tests.engine.parallel_case import training, write_dataset
from tests.process_table import MARK, end_all, marked, wait_until
from xtuner_plugins.checkpoints.work_dir import newest_checkpoint, read_checkpoint
from xtuner_plugins.engine.launch import ranks
from xtuner_plugins.engine.launch.ranks import run_ranks
from xtuner_plugins.engine.stopping import COMMAND
from xtuner_plugins.processes import PARENT_ENDED, PASSED_ON, STOP_SIGNALS

# Each rank writes the signals that it gets, and leaves at the first that is the last of its life.
NOTE = """
import os, signal, sys, time
out = open(os.environ["OUT"], "a")
for number in range(34, 60):
    signal.signal(number, lambda n, _: (out.write(f"{n}\\n"), out.flush(), sys.exit(128 + 15)))
print("ready", file=open(os.environ["OUT"] + ".ready", "w"))
time.sleep(60)
"""


def envs(folder, count, **more):
    return [{**os.environ, "RANK": str(rank), "OUT": str(folder / str(rank)), **more} for rank in range(count)]


@pytest.mark.parametrize("number", [*STOP_SIGNALS, PARENT_ENDED])
def test_a_signal_reaches_every_rank_once_as_another(tmp_path, number, monkeypatch):
    monkeypatch.setattr(ranks, "LEFT_AFTER_FAILURE_SECONDS", HANGS_AFTER)  # a busy machine may take long to write

    def send():
        while not all((tmp_path / f"{rank}.ready").exists() for rank in range(2)):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    assert run_ranks([sys.executable, "-c", NOTE], envs(tmp_path, 2)) == 128 + signal.SIGTERM
    thread.join()
    expected = f"{int(PASSED_ON.get(number, number))}\n"
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [expected] * 2
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "code, status",
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
        (f"import os; os.kill(os.getpid(), {int(PASSED_ON[signal.SIGINT])})", 130),
    ],
)
def test_the_status_is_the_ranks(tmp_path, code, status):
    assert run_ranks([sys.executable, "-c", code], envs(tmp_path, 1)) == status


def test_a_failed_rank_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "LEFT_AFTER_FAILURE_SECONDS", 0.2)
    code = "import os, time\nif os.environ['RANK'] == '1': raise SystemExit(5)\ntime.sleep(60)"
    assert run_ranks([sys.executable, "-c", code], envs(tmp_path, 3)) == 5


def while_sleeping(monkeypatch, act, num_ranks=2, seconds=60, **env):
    """The status of a run of ranks 4, 5 ... that sleep, while ``act`` gets their process ids."""
    monkeypatch.setattr(ranks, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(ranks, "STOPPED_SECONDS", 1.0)
    started, start = [], ranks.start_bound

    def note(*args, **options):
        started.append(start(*args, **options))
        return started[-1]

    def wait_and_act():
        while len(started) < num_ranks:
            time.sleep(0.02)
        act([process.pid for process in started])

    monkeypatch.setattr(ranks, "start_bound", note)
    thread = threading.Thread(target=wait_and_act)
    thread.start()
    envs = [{**os.environ, "RANK": str(4 + index), **env} for index in range(num_ranks)]
    status = run_ranks(["sleep", str(seconds)], envs)
    thread.join()
    assert all(process.returncode is not None for process in started)
    return status


def stop(*pids, seconds=None):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    if seconds is not None:
        time.sleep(seconds)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_rank_that_stays_stopped_ends_the_run(monkeypatch, capfd):
    stopped = []
    env = {COMMAND: "python tools/train.py a.py", "NODE_RANK": "1"}
    status = while_sleeping(monkeypatch, lambda pids: stopped.append(pids[1]) or stop(pids[1]), **env)
    [line] = capfd.readouterr().err.splitlines()
    assert status == 1 and line.startswith(f"error: rank 5 (process {stopped[0]}) has been stopped by a signal")
    assert line.endswith("this one with: NODE_RANK=1 python tools/train.py a.py --resume")


def test_ranks_of_other_nodes_wait_too(monkeypatch, capfd):
    assert while_sleeping(monkeypatch, lambda pids: stop(*pids), num_ranks=1, WORLD_SIZE="2") == 1
    assert "rank 4 " in capfd.readouterr().err


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda pids: stop(pids[0], seconds=0.1), id="briefly"),
        pytest.param(lambda pids: stop(*pids, seconds=1.5), id="all"),
    ],
)
def test_a_pause_is_no_end(monkeypatch, capfd, act):
    assert while_sleeping(monkeypatch, act, seconds=3) == 0 and capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_training_ends_when_one_of_its_ranks_stays_stopped(toy_base, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    options = {"train_cfg.max_epochs": 1000, "default_hooks.checkpoint.interval": 2}
    arguments, env = training(run, toy_base, write_dataset(tmp_path / "data"), processes=2, options=options)
    with log.open("w") as out:
        command = [sys.executable, "tools/train.py", *arguments]
        launcher = subprocess.Popen(command, cwd=ROOT, env=env | {MARK: str(run)}, stdout=out, stderr=out)
    try:
        assert wait_until(lambda: list(run.glob("iter_*.pth")) or launcher.poll() is not None, HANGS_AFTER)
        [victim] = [pid for pid in marked(str(run)) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
        os.kill(victim, signal.SIGSTOP)
        since = time.monotonic()
        assert launcher.wait(HANGS_AFTER) == 1
        assert time.monotonic() - since > ranks.STOPPED_SECONDS
        [line] = [line for line in log.read_text().splitlines() if line.startswith("error")]
        assert f"rank 1 (process {victim}) has been stopped" in line
        assert not marked(str(run)) and read_checkpoint(newest_checkpoint(run))["iter"] >= 2
    finally:
        end_all(str(run))


def test_ranks_end_with_their_parent(tmp_path):
    code = "import os, sys\nfrom xtuner_plugins.engine.launch.ranks import run_ranks\n"
    rank = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code += f"run_ranks([sys.executable, '-c', {rank!r}], [dict(os.environ)])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the rank outlived its parent")
