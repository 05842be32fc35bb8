"""Whole training runs in forked children: a run as `tools/train.py` starts it, without paying for its imports again."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .parallel_case import ROOT, training

TIMEOUT_S = 600


@dataclass
class Run:
    """How a run ended: exit codes by rank (negative: a signal), and what rank 0 wrote."""

    codes: list[int]
    output: str

    @property
    def ok(self) -> bool:
        return not any(self.codes)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error")]


def train_forked(
    work_dir: Path,
    base: Path,
    data: tuple[Path, Path],
    *,
    processes: int = 1,
    prepare: Callable[[], None] | None = None,
    **case,
) -> Run:
    """Runs `xtuner_plugins.train_process` in forked children on a global batch of 4.

    Args:
        work_dir, base, data, processes: As `parallel_case.training`.
        prepare: Called in each child before it trains; the place for a fault.
        **case: As `parallel_case.training`.
    """
    import deepspeed as _deepspeed  # noqa: F401  (imported once, here)
    import xtuner.tools.train  # noqa: F401

    arguments = ["train", *training(work_dir, base, data, processes=processes, **case)[0]]
    if processes > 1:
        arguments[2:2] = ["--launcher", "pytorch"]
    work_dir.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [work_dir.parent / f"{work_dir.name}.rank{rank}.log" for rank in range(processes)]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            _train(arguments, rank, processes, port, logs[rank], prepare)
        children.append(child)
    codes = _wait(children)
    return Run(codes, logs[0].read_text(errors="replace"))


def _train(arguments, rank, processes, port, log, prepare) -> None:
    """The child: never returns."""
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # pytest has its own
        os.chdir(ROOT)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = arguments
        if prepare is not None:
            prepare()
        from xtuner_plugins.train_process import main

        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: list[int]) -> list[int]:
    """Exit codes; when one rank has failed the others are ended, as torchrun does."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + TIMEOUT_S
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child]:
                    deadline = min(deadline, time.monotonic() + 10)
        if time.monotonic() > deadline:
            for child in set(children) - codes.keys():
                os.kill(child, 9)
        time.sleep(0.02)
    return [codes[child] for child in children]
