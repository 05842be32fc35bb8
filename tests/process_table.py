"""Finds a test's own processes, wherever they hang, by a mark in their environment, which children inherit."""

import contextlib
import os
import signal
import time

import psutil

MARK = "XTUNER_PLUGINS_TEST_RUN"


def marked(value: str) -> list[int]:
    """Process ids that carry ``MARK=value``; those that have ended and wait for their parent don't count."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
            if process.environ().get(MARK) == value and is_alive(process.pid):
                found.append(process.pid)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs (or sleeps)."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(condition, seconds: float) -> bool:
    """Whether ``condition()`` became true in that time."""
    deadline = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(held)


def ends(pid: int, seconds: float = 60) -> bool:
    """Whether a process ends by itself in that time; else it is killed."""
    if wait_until(lambda: not is_alive(pid), seconds):
        return True
    os.kill(pid, signal.SIGKILL)
    return False


def end_all(value: str) -> None:
    """Kills what `marked` finds, so that a failing test leaves nothing behind."""
    for pid in marked(value):
        os.kill(pid, signal.SIGKILL)
