"""Who gets a signal, and what it does; what a run that is told to stop saves is in `run/test_going_on.py`."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import HANGS_AFTER
from xtuner_plugins.engine.watch import stopping
from xtuner_plugins.engine.watch.stopping import ONE_REQUEST_SECONDS, StopRequests, watching
from xtuner_plugins.processes import PARENT_ENDED
from xtuner_plugins.weights.work_dir import newest_checkpoint, read_checkpoint

from ..started import OURS, XTUNER


def in_a_child(do, *more) -> int:
    """The status of a forked process that does this, gets signals, and exits with 7; negative for a signal."""
    child = os.fork()
    if child == 0:
        do()
        for number in more:
            signal.raise_signal(number)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def requests(monkeypatch):
    """Those of a process that got no signal yet."""
    monkeypatch.setattr(stopping, "requests", fresh := StopRequests())
    yield fresh
    signal.signal(PARENT_ENDED, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, PARENT_ENDED])
def test_a_second_request_ends_at_once_and_a_copy_of_the_first_does_not(number, requests, monkeypatch, capfd):
    assert not stopping.agree_to_stop()
    with watching():
        for each in (number, number, PARENT_ENDED):
            signal.raise_signal(each)
        noted = signal.SIGTERM if number == PARENT_ENDED else number
        assert stopping.agree_to_stop() and requests.agreed == noted and stopping.exit_status() == 128 + noted
        now = time.monotonic() + ONE_REQUEST_SECONDS
        for seconds, each, status in ((0, number, 7), (0.5, PARENT_ENDED, 7), (0.5, signal.SIGINT, 130)):
            monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda at=now + seconds: at))
            requests._since = now - ONE_REQUEST_SECONDS
            # A child leaves signals to its parent.
            assert in_a_child(lambda each=each: signal.signal(each, requests.receive), each) == status, (seconds, each)
    said = capfd.readouterr().err
    assert said.startswith(f"{signal.Signals(noted).name}: dropping the unfinished step") and said.count("ends at") == 1
    assert said.count("second signal: ended at once") == 1


def test_workers_leave_signals_to_their_parent_and_handlers_come_and_go(requests):
    """That the parent has ended may be told after the save; a second request still ends the run then."""
    before = signal.getsignal(signal.SIGTERM)
    with watching():
        assert in_a_child(int, signal.SIGTERM, signal.SIGTERM) == 7
    assert signal.getsignal(signal.SIGTERM) is before and requests.first is None

    def told():
        with watching():
            signal.raise_signal(signal.SIGTERM)

    assert in_a_child(told, PARENT_ENDED) == 7 and in_a_child(told, PARENT_ENDED, signal.SIGTERM) == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, processes, deepspeed, number, to",
    [
        (OURS, 1, None, signal.SIGINT, "group"),
        (OURS, 2, "deepspeed_zero3", signal.SIGTERM, "all"),
        (XTUNER, 1, None, signal.SIGINT, "group"),
        (XTUNER, 2, "deepspeed_zero2", signal.SIGTERM, "parent"),
    ],
)
def test_whoever_gets_the_signal(start, command, processes, deepspeed, number, to):
    """The command alone, everything in the terminal (workers too), or every process as Slurm may do it."""
    options = {"train_dataloader.num_workers": 1, "train_dataloader.persistent_workers": True}
    run = start(command, processes=processes, deepspeed=deepspeed, options=options)
    run.trains()
    if to == "group":
        os.killpg(run.launcher.pid, number)
    for pid in {"parent": [run.launcher.pid], "all": run.pids()}.get(to, []):
        os.kill(pid, number)
    run.launcher.wait(HANGS_AFTER)
    assert run.ends(), run.said[-3000:]
    lines = run.said.splitlines()
    at = next(index for index, text in enumerate(lines) if text.startswith("stopped by"))
    saved = newest_checkpoint(run.work_dir)
    assert f"saved to {saved}; go on with" in lines[at] and read_checkpoint(saved)["has_optimizer"]
    if command is XTUNER:  # it hides the status, and dies of what it gets
        return
    assert run.launcher.returncode == 128 + number and at == len(lines) - 2, run.said[-3000:]
    assert "Traceback" not in run.said
    if processes == 1:  # the line does go on; the rank alone gets the next signal
        run.launch(["sh", "-c", lines[at + 1].replace("python ", f"{sys.executable} ", 1)])
        run.trains()
        assert f"resuming from {saved}" in run.said
        rank = next(pid for pid in run.pids() if b"train_process" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(rank, number)
        assert run.ends() and newest_checkpoint(run.work_dir) != saved
