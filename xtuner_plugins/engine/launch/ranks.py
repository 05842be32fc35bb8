"""Runs the training processes of this node, passes signals on to them, and tells how they ended.

torchrun would give them 30 seconds after a signal, which may be less than a step and a checkpoint take, and end with
status 1 whatever their own was. Nor would it notice a rank that is stopped (SIGSTOP), for which the others wait until
PyTorch's timeout. This process takes no part in the training, so nothing that a rank does keeps it from looking.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from ...processes import PASSED_ON, STOP_REQUESTS, is_stopped, original_signal, start_bound
from ..stopping import command_to_go_on

POLL_SECONDS = 0.05
LEFT_AFTER_FAILURE_SECONDS = 10.0  # for the other ranks to say what they have to say
LOOK_SECONDS = 1.0  # between two looks for stopped ranks
STOPPED_SECONDS = 60.0  # that a rank may be stopped while others wait for it


def run_ranks(command: Sequence[str], envs: Sequence[Mapping[str, str]]) -> int:
    """Runs one process per environment; they end with this one.

    A request to stop (Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2) reaches every process once through here. When one fails, the
    others are killed soon after: they would wait for it. So are all when one of them stays stopped by a signal while
    others of the run wait.

    Returns:
        The status of the first that failed, 128 plus the number of the signal that ended it, or 0.
    """
    processes: list[subprocess.Popen] = []

    def pass_on(number: int, _frame) -> None:
        for process in processes:
            process.send_signal(PASSED_ON.get(number, number))

    previous = {number: signal.signal(number, pass_on) for number in STOP_REQUESTS}
    try:
        for env in envs:
            processes.append(start_bound(command, env=dict(env)))
        return _wait(processes, _StoppedRanks(processes, envs))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _StoppedRanks:
    """How long ranks of this node have been stopped by a signal.

    Looks are counted, not seconds: while this process is stopped, too (Ctrl-Z, a suspended job), no time passes. Where
    all ranks of the run are stopped nobody waits, so a run may be paused as a whole.
    """

    def __init__(self, processes: Sequence[subprocess.Popen], envs: Sequence[Mapping[str, str]]):
        self._processes, self._envs = processes, envs
        self._others_wait = int(envs[0].get("WORLD_SIZE", len(envs))) > len(envs)  # on other nodes
        self._looks = [0] * len(envs)
        self._next = 0.0

    def name_one(self) -> str | None:
        """One line about a rank that has been stopped for too long; None if there is none."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + LOOK_SECONDS
        alive = [process.poll() is None for process in self._processes]
        stopped = [is_so and is_stopped(p.pid) for p, is_so in zip(self._processes, alive, strict=True)]
        someone_waits = self._others_wait or sum(stopped) < sum(alive)
        self._looks = [
            looks + 1 if is_so and someone_waits else 0 for looks, is_so in zip(self._looks, stopped, strict=True)
        ]
        index = self._looks.index(max(self._looks))
        if self._looks[index] * LOOK_SECONDS <= STOPPED_SECONDS:
            return None
        rank, pid = self._envs[index].get("RANK", index), self._processes[index].pid
        return (
            f"rank {rank} (process {pid}) has been stopped by a signal (SIGSTOP) for {STOPPED_SECONDS:g} seconds while "
            "the other ranks wait for it, so the run ends. The last checkpoint is as it was; start every node again "
            f"with --resume, this one with: {command_to_go_on(self._envs[index])}"
        )


def _wait(processes: Sequence[subprocess.Popen], stopped: _StoppedRanks) -> int:
    failure, deadline = 0, None
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed and deadline is None:
            failure, deadline = _status(failed[0]), time.monotonic() + LEFT_AFTER_FAILURE_SECONDS
        if None not in codes:
            return failure
        if deadline is None and (message := stopped.name_one()):
            print(f"error: {message}", file=sys.stderr)
            failure, deadline = 1, time.monotonic()
        if deadline is not None and time.monotonic() > deadline:
            for process, code in zip(processes, codes, strict=True):
                if code is None:
                    process.kill()
        time.sleep(POLL_SECONDS)


def _status(code: int) -> int:
    return 128 + original_signal(-code) if code < 0 else code
