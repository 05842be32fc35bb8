"""Whole training runs in forked children: a run as `tools/train.py` starts it, without paying for its imports again.

The children come from a server that has imported everything and computed nothing. Forking a process that has computed
would copy locks of threads that the child lacks: a thread pool of OpenMP hangs the child.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tests.engine.parallel_case import ROOT, training
from xtuner_plugins.processes import free_port

HUNG_AFTER_S = 300
PRELOADED = ["tests.engine.preloaded"]


@dataclass
class Run:
    """How a run ended: exit codes by rank (negative: a signal), what rank 0 wrote, and what the others wrote."""

    codes: list[int]
    output: str
    others: str = ""

    @property
    def ok(self) -> bool:
        """Whether every rank ended with status 0."""
        return not any(self.codes)

    @property
    def errors(self) -> list[str]:
        """The lines of rank 0 that tell of an error."""
        return [line for line in self.output.splitlines() if line.startswith("error")]


def run_forked(
    arguments: list[str],
    env: dict[str, str],
    work_dir: Path,
    *,
    processes: int = 1,
    prepare: Callable[[], None] | None = None,
) -> Run:
    """Runs ``xtuner_plugins.engine.launch.train_process *arguments`` once per rank; logs go beside ``work_dir``.

    Args:
        arguments: As for `tools/train.py`, with the config's path first.
        env: The environment of the processes, without what tells a rank who it is.
        work_dir: Where the run saves; the arguments name it, too.
        processes: Ranks.
        prepare: Called in each child before it trains; the place for a fault. A function of a module, or a `partial`
            of one, because it is pickled.
    """
    arguments, env = ["train", *arguments], dict(env)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    if processes > 1:
        arguments[2:2] = ["--launcher", "pytorch"]
        env |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    work_dir.parent.mkdir(parents=True, exist_ok=True)
    logs = [work_dir.parent / f"{work_dir.name}.rank{rank}.log" for rank in range(processes)]
    children = []
    for rank, log in enumerate(logs):
        ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        child = fork_server().Process(target=_train, args=(arguments, env | ranked, log, prepare))
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # the first start starts the server
            child.start()
        children.append(child)
    codes = _wait(children)
    said = [log.read_text(errors="replace") if log.exists() else "" for log in logs]
    return Run(codes, said[0], "".join(said[1:])[-3000:])


def train_forked(
    work_dir: Path,
    base: Path,
    data: tuple[Path, Path],
    *,
    processes: int = 1,
    prepare: Callable[[], None] | None = None,
    **case,
) -> Run:
    """Runs `xtuner_plugins.engine.launch.train_process` in forked children on a global batch of 4.

    Args:
        work_dir, base, data, processes: As `parallel_case.training`.
        prepare: As `run_forked`.
        **case: As `parallel_case.training`.
    """
    arguments, env = training(work_dir, base, data, processes=processes, **case)
    return run_forked(arguments, env, work_dir, processes=processes, prepare=prepare)


def note_sources(path: Path) -> None:
    """Prepares a run to append a line per step and rank to ``PATH.RANK``: step, epoch, sources by micro-batch."""
    from mmengine.dist import get_rank

    from xtuner_plugins.engine.run.loops import PlannedTrainLoop

    run_iter = PlannedTrainLoop.run_iter

    def noted(loop, batches):
        entry = {"step": loop.iter + 1, "epoch": loop.dataloader_iterator.epoch}
        with open(f"{path}.{get_rank()}", "a") as file:
            file.write(json.dumps(entry | {"sources": [batch["sources"] for batch in batches]}) + "\n")
        run_iter(loop, batches)

    PlannedTrainLoop.run_iter = noted


@functools.cache
def fork_server():
    """The context whose children come from the server."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    return server


def _train(arguments: list[str], env: dict[str, str], log: Path, prepare: Callable[[], None] | None) -> None:
    """The child: never returns."""
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        os.chdir(ROOT)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = arguments
        faulthandler.dump_traceback_later(HUNG_AFTER_S)  # a run that hangs says where
        if prepare is not None:
            prepare()
        from xtuner_plugins.engine.launch.train_process import main

        code = main()
    except SystemExit as refusal:
        code = refusal.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: list[multiprocessing.Process]) -> list[int]:
    """Exit codes; when one rank has failed the others are ended, as torchrun does."""
    deadline = time.monotonic() + HUNG_AFTER_S + 5
    while alive := [child for child in children if child.is_alive()]:
        if any(child.exitcode for child in children):
            deadline = min(deadline, time.monotonic() + 10)
        if time.monotonic() > deadline:
            for child in alive:
                child.kill()
        time.sleep(0.02)
    return [child.exitcode for child in children]
