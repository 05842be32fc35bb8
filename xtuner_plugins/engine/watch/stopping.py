"""Ends a run on Ctrl-C, SIGTERM and Slurm's warnings: the last whole step is saved; a second signal ends at once.

Ranks get signals at different times, or only one of them does. Before every micro-batch they tell each other, so all
drop the same unfinished step, which may be long.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...processes import PARENT_ENDED, STOP_REQUESTS, leave_signals_to_parent

COMMAND = "XTUNER_PLUGINS_COMMAND"  # the command line that started the run, for the line that tells how to go on
# Where everything of a job gets a signal, so does the launcher, which passes it on: what comes so soon is the same.
ONE_REQUEST_SECONDS = 2.0
LAUNCH_VARIABLES = ("NNODES", "NODE_RANK", "ADDR", "PORT", "NPROC_PER_NODE")


class StopRequests:
    """The signals that this process got, and the one that all ranks agreed on.

    Attributes:
        first: The first signal that this process got, None before.
        agreed: The signal after which all ranks stop, None before.
        watched: Whether this process notes signals now.
    """

    def __init__(self):
        self.first: int | None = None
        self.agreed: int | None = None
        self.watched, self._since = False, 0.0

    def receive(self, number: int, _frame: Any = None) -> None:
        """Handles a signal: notes the first one; the process ends at a second, for which a copy is too early.

        That the parent has ended, which Ctrl-C may bring about, is never a second request.
        """
        if self.first is None:
            self.first, self._since = signal.SIGTERM if number == PARENT_ENDED else number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                name = signal.Signals(self.first).name
                os.write(2, f"{name}: dropping the unfinished step and saving; a second signal ends at once\n".encode())
        elif number != PARENT_ENDED and time.monotonic() - self._since > ONE_REQUEST_SECONDS:
            os.write(2, b"second signal: ended at once, the last checkpoint is as it was\n")
            os._exit(128 + number)


requests = StopRequests()  # signals come to a process, so there is one


def agree_to_stop() -> bool:
    """Whether a rank got a signal; all ranks ask together.

    Numbers are compared on the CPU, so that nothing waits for a device.
    """
    import torch
    import torch.distributed as dist

    number = torch.tensor(requests.first or 0)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=_cpu_group(dist.group.WORLD))
    requests.agreed = int(number) or None
    return requests.agreed is not None


@functools.lru_cache(maxsize=1)
def _cpu_group(world):
    """The group of all ranks that sums tensors on the CPU; ``world`` is the default one."""
    import torch.distributed as dist

    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


@contextmanager
def watching() -> Iterator[None]:
    """Notes signals in `requests` instead of ending the process, but for a second one. For the main thread.

    After a request, that the parent has ended is ignored to the end of the process: it may be told when all is saved,
    and before the run has said how to go on.
    """
    before = {number: signal.getsignal(number) for number in STOP_REQUESTS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # e.g. SIGINT in a shell's background job
            signal.signal(number, requests.receive)
    requests.watched = True
    os.register_at_fork(after_in_child=lambda: requests.watched and leave_signals_to_parent())
    atexit.register(_end_children)
    try:
        yield
    finally:
        requests.watched = False
        for number, handler in before.items():
            is_known = requests.first is not None and number == PARENT_ENDED
            signal.signal(number, signal.SIG_IGN if is_known else handler)


def _end_children() -> None:
    """Kills the loader's workers at the end of the process: they ignore SIGTERM, with which Python would end them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would complain
    for child in multiprocessing.active_children():
        child.kill()


def exit_status() -> int:
    """The status of a run that ended in order: 0, or 128 plus the number of the signal that stopped it."""
    return 128 + requests.agreed if requests.agreed else 0


def started_by(env: Mapping[str, str]) -> str:
    """The command line that started this run."""
    return env.get(COMMAND) or shlex.join(["xtuner", "train", *sys.argv[1:]])


def command_to_go_on(env: Mapping[str, str] = os.environ) -> str:
    """The shell line that resumes this run: its own and one more ``--resume``, which is the one that counts."""
    line = started_by(env)
    resume = " --resume auto" if line.startswith("xtuner ") else " --resume"  # XTuner's parser wants a value
    variables = [f"{name}={env[name]}" for name in LAUNCH_VARIABLES if name in env]
    return " ".join([*variables, line.removesuffix(resume)]) + resume
