"""The processes of a node: what becomes of signals, of statuses, and of those that are left."""

import os
import signal
import sys
import threading

from tests.conftest import HANGS_AFTER
from tests.process_table import wait_until
from xtuner_plugins.engine.launch import ranks
from xtuner_plugins.engine.launch.ranks import run_ranks
from xtuner_plugins.processes import PARENT_ENDED, STOP_REQUESTS

# Each rank writes the signals that it gets, and leaves at the first that is the last of its life.
NOTE = """
import os, pathlib, signal, sys, time
from xtuner_plugins.processes import STOP_REQUESTS
out = pathlib.Path(os.environ["OUT"])
for number in STOP_REQUESTS:
    signal.signal(number, lambda n, _: (out.write_text(out.read_text() + f"{n} "), sys.exit(128 + 15)))
out.write_text("ready ")
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
        said = [folder / str(rank) for rank in range(2)]

        def send(number=number, said=said):
            wait_until(lambda: all(path.exists() and path.read_text() for path in said), HANGS_AFTER)
            os.kill(os.getpid(), number)

        (thread := threading.Thread(target=send)).start()
        assert run(NOTE, folder, 2) == 128 + signal.SIGTERM
        thread.join()
        assert [path.read_text() for path in said] == [f"ready {int(number)} "] * 2
        assert signal.getsignal(signal.SIGTERM) is before


def test_the_status_is_that_of_the_first_that_failed_and_others_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "LEFT_AFTER_FAILURE_SECONDS", 0.2)
    assert [run(f"exit({status})", tmp_path, 1) for status in (0, 3)] == [0, 3]
    for number, status in ((9, 137), (2, 130), (int(PARENT_ENDED), 143)):
        assert run(f"import os; os.kill(os.getpid(), {number})", tmp_path, 1) == status
    # One request leaves a rank all the time that it needs, a second one doesn't.
    slow = "import os, signal, sys, time\nsignal.signal(15, lambda *_: (time.sleep(1), sys.exit(7)))\n"
    slow += "os.kill(os.getppid(), 15)\ntime.sleep(60)"
    assert run(slow, tmp_path, 1) == 7
    monkeypatch.setattr(ranks, "ONE_REQUEST_SECONDS", -1)
    assert run(slow, tmp_path, 1) == 137
    assert run("import os, time\nif os.environ['RANK'] == '1': exit(5)\ntime.sleep(60)", tmp_path, 3) == 5
