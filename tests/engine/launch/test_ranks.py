"""The processes of a node: what becomes of signals, of statuses, and of those that are left."""

import os
import signal
import subprocess
import sys
import threading
import time

from tests.conftest import HANGS_AFTER
from tests.process_table import ends
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


def run(code, folder, count):
    envs = [{**os.environ, "RANK": str(rank), "OUT": str(folder / str(rank))} for rank in range(count)]
    return run_ranks([sys.executable, "-c", code], envs)


def test_a_signal_reaches_every_rank_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "LEFT_AFTER_FAILURE_SECONDS", HANGS_AFTER)  # a busy machine may take long to write
    before = signal.getsignal(signal.SIGTERM)
    for number in STOP_REQUESTS:
        (folder := tmp_path / str(int(number))).mkdir()

        def send(number=number, folder=folder):
            while not all((folder / f"{rank}.ready").exists() for rank in range(2)):
                time.sleep(0.02)
            os.kill(os.getpid(), number)

        (thread := threading.Thread(target=send)).start()
        assert run(NOTE, folder, 2) == 128 + signal.SIGTERM
        thread.join()
        assert [(folder / str(rank)).read_text() for rank in range(2)] == [f"{int(number)}\n"] * 2
        assert signal.getsignal(signal.SIGTERM) is before


def test_the_status_is_that_of_the_first_that_failed_and_others_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "LEFT_AFTER_FAILURE_SECONDS", 0.2)
    killed_by = {9: 137, 2: 130, int(PARENT_ENDED): 143}  # numbers of signals, and statuses
    for do, status in {"0": 0, "exit(3)": 3, **{f"os.kill(os.getpid(), {n})": killed_by[n] for n in killed_by}}.items():
        assert run(f"import os; {do}", tmp_path, 1) == status
    assert run("import os, time\nif os.environ['RANK'] == '1': exit(5)\ntime.sleep(60)", tmp_path, 3) == 5


def test_ranks_end_with_their_parent():
    code = "import os, sys\nfrom xtuner_plugins.engine.launch.ranks import run_ranks\n"
    rank = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code += f"run_ranks([sys.executable, '-c', {rank!r}], [dict(os.environ)])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent.stdout as out:
        child = int(out.readline())
        parent.kill()
        parent.wait()
        assert ends(child)
