"""The processes of a node: what becomes of signals, of statuses, and of those that are left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import HANGS_AFTER
from xtuner_plugins.engine.launch import ranks
from xtuner_plugins.engine.launch.ranks import run_ranks
from xtuner_plugins.processes import PARENT_ENDED, STOP_REQUESTS

# Each rank writes the signals that it gets, and leaves at the first that is the last of its life.
NOTE = """
import os, signal, sys, time
from xtuner_plugins.processes import PARENT_ENDED, STOP_REQUESTS
out = open(os.environ["OUT"], "a")
for number in STOP_REQUESTS:
    signal.signal(number, lambda n, _: (out.write(f"{n}\\n"), out.flush(), sys.exit(128 + 15)))
print("ready", file=open(os.environ["OUT"] + ".ready", "w"))
time.sleep(60)
"""


KILLED_BY = [(9, 137), (2, 130), (int(PARENT_ENDED), 143)]  # numbers of signals, and statuses


def envs(folder, count, **more):
    return [{**os.environ, "RANK": str(rank), "OUT": str(folder / str(rank)), **more} for rank in range(count)]


@pytest.mark.parametrize("number", STOP_REQUESTS)
def test_a_signal_reaches_every_rank_once(tmp_path, number, monkeypatch):
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
    expected = f"{int(number)}\n"
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [expected] * 2
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "code, status", [("0", 0), ("exit(3)", 3)] + [(f"os.kill(os.getpid(), {n})", s) for n, s in KILLED_BY]
)
def test_the_status_is_the_ranks(tmp_path, code, status):
    assert run_ranks([sys.executable, "-c", f"import os; {code}"], envs(tmp_path, 1)) == status


def test_a_failed_rank_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "LEFT_AFTER_FAILURE_SECONDS", 0.2)
    code = "import os, time\nif os.environ['RANK'] == '1': raise SystemExit(5)\ntime.sleep(60)"
    assert run_ranks([sys.executable, "-c", code], envs(tmp_path, 3)) == 5


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
