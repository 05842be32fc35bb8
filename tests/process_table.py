"""Finds a test's own processes, wherever they hang, by a mark in their environment, which children inherit."""

import os
import signal
import time
from pathlib import Path

MARK = "XTUNER_PLUGINS_TEST_RUN"


def marked(value: str) -> list[int]:
    """Process ids that carry ``MARK=value``; those that have ended and wait for their parent don't count."""
    wanted, found = f"{MARK}={value}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return [pid for pid in found if is_alive(pid)]


def is_alive(pid: int) -> bool:
    """Whether the process runs (or sleeps)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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
