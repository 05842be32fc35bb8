"""Runs the training processes of this node, passes signals on to them, and tells how they ended.

torchrun would give them 30 seconds after a signal, which may be less than a step and a checkpoint take, and end with
status 1 whatever their own was.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from ...processes import PARENT_ENDED, STOP_REQUESTS, start_bound
from ..watch.stopping import ONE_REQUEST_SECONDS

POLL_SECONDS = 0.05
LEFT_AFTER_FAILURE_SECONDS = 10.0  # for the other ranks to say what they have to say


def run_ranks(command: Sequence[str], envs: Sequence[Mapping[str, str]]) -> int:
    """Runs one process per environment; they end with this one.

    Each has a session of its own, so a request to stop (Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2) reaches it once, through
    here. When one fails, or a second request comes, those that are left soon after are killed: a rank that waits for
    another one doesn't hear of it.

    Returns:
        The status of the first that failed, 128 plus the number of the signal that ended it, or 0.
    """
    processes: list[subprocess.Popen] = []
    asked: list[float] = []

    def pass_on(number: int, _frame) -> None:
        asked.append(time.monotonic())
        for process in processes:
            process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in STOP_REQUESTS}
    try:
        for env in envs:
            processes.append(start_bound(command, env=dict(env), start_new_session=True))
        return _wait(processes, asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen], asked: Sequence[float]) -> int:
    failure, deadline = 0, None
    while True:
        codes = [process.poll() for process in processes]
        failure = failure or next((_status(code) for code in codes if code), 0)
        is_second = bool(asked) and asked[-1] - asked[0] > ONE_REQUEST_SECONDS
        if (failure or is_second) and deadline is None:
            deadline = time.monotonic() + LEFT_AFTER_FAILURE_SECONDS
        if None not in codes:
            return failure
        if deadline is not None and time.monotonic() > deadline:
            for process, code in zip(processes, codes, strict=True):
                if code is None:
                    process.kill()
        time.sleep(POLL_SECONDS)


def _status(code: int) -> int:
    """As a shell has it; a rank that its launcher's end killed before it trained is as terminated."""
    return 128 + (signal.SIGTERM if -code == PARENT_ENDED else -code) if code < 0 else code
