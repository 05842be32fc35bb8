"""Whole training runs in forked children: a run as `tools/train.py` starts it, without paying for its imports again.

The children come from a server that has imported everything and computed nothing. Forking a process that has computed
would copy locks of threads that the child lacks: a thread pool of OpenMP hangs the child.
"""

from __future__ import annotations

import faulthandler
import functools
import itertools
import json
import multiprocessing
import os
import pydoc
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tests.engine.parallel_case import ROOT, edited_config, logged, training
from xtuner_plugins.processes import free_port
from xtuner_plugins.settings import SETTINGS

HUNG_AFTER_S = 300
PRELOADED = ["tests.engine.preloaded"]


@dataclass
class Run:
    """How a run ended: its folder, exit codes by rank (negative: a signal), what rank 0 wrote, and the others."""

    work_dir: Path
    codes: list[int]
    output: str
    others: str = ""

    @property
    def ok(self) -> bool:
        """Whether every rank ended with status 0."""
        return not any(self.codes)

    def logged(self, key: str = "loss") -> list[float]:
        """As `parallel_case.logged`."""
        return logged(self.work_dir, key)

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
    """Runs ``train_process *arguments`` (the config's path first) once per rank; logs go beside ``work_dir``.

    ``prepare`` is called in each child before it trains. It is pickled: a function of a module, or a `partial` of one.
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
    return Run(work_dir, codes, said[0], "".join(said[1:])[-3000:])


def train_forked(
    work_dir: Path,
    base: Path,
    data: tuple[Path, Path],
    *,
    processes: int = 1,
    prepare: Callable[[], None] | None = None,
    **case,
) -> Run:
    """`run_forked` on a global batch of 4, with the arguments of `parallel_case.training`."""
    arguments, env = training(work_dir, base, data, processes=processes, **case)
    return run_forked(arguments, env, work_dir, processes=processes, prepare=prepare)


class Trainer:
    """Trains on a data set below a folder of its own; what isn't said otherwise has to end well.

    Args:
        folder: Of the runs, each of which has a folder in it.
        base, data: As `parallel_case.training`.
    """

    def __init__(self, folder: Path, base: Path, data: tuple[Path, Path]):
        self.folder, self.base, self.data = folder, base, data

    def __call__(
        self,
        name: str,
        leaf: str = "toy_finetune_full",
        *,
        codes: tuple[int, ...] = (0,),
        options: dict | None = None,
        lines: str = "",
        prepare: Callable[[], None] | None = None,
        data: tuple[Path, Path] | None = None,
        processes: int = 1,
        **settings,
    ) -> Run:
        """Trains a toy leaf in the folder ``name``.

        Args:
            leaf: Stem of a config in configs/toy.
            codes: The statuses that ranks may end with, at least one of them with the first.
            options: Values for keys.
            lines: Of a config that takes in the leaf.
            prepare, data, processes: As `train_forked`.
            **settings: Values by short names; of `parallel_case.training` also ``deepspeed`` and ``extra``.
        """
        own = {key: settings.pop(key) for key in ("deepspeed", "extra") if key in settings}
        options = {SETTINGS[key].key: value for key, value in settings.items()} | (options or {})
        own |= {"options": options, "config": f"configs/toy/{leaf}.py", "processes": processes, "prepare": prepare}
        if lines:
            own["config"] = edited_config(self.folder / f"{name}-config", leaf)
            with open(own["config"], "a") as file:
                file.write(lines)
        run = train_forked(self.folder / name, self.base, data or self.data, **own)
        assert codes[0] in run.codes and {*run.codes} <= {*codes}, f"{run.codes}\n{run.output[-3000:]}{run.others}"
        return run


def at_call(path: str, number: int | None, do: Callable, rank: int | None = None) -> None:
    """Prepares a run for a fault: the n-th call of a function does something first, on one rank or on all.

    Args:
        path: Of the function or method, below xtuner_plugins.
        number: Of the call, from 1; None for each.
        do: Gets the arguments of the call.
        rank: None for all.
    """
    *above, name = path.split(".")
    owner = pydoc.locate(".".join(["xtuner_plugins", *above]))
    function, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(function)
    def called(*args, **kwargs):
        if next(calls) == number or number is None:
            do(*args)
        return function(*args, **kwargs)

    if rank in (None, int(os.environ.get("RANK", "0"))):
        setattr(owner, name, called)


def fault(*args, **kwargs) -> Callable[[], None]:
    """`at_call` as a run's ``prepare``."""
    return functools.partial(at_call, *args, **kwargs)


def send(number: int, *_) -> None:
    """The process gets a signal."""
    os.kill(os.getpid(), number)
    time.sleep(0.5)


def note_sources(path: Path, loop, batches: list[dict]) -> None:
    """Appends a line for a step to ``PATH.RANK``: step, epoch, sources by micro-batch."""
    entry = {"step": loop.iter + 1, "epoch": loop.dataloader_iterator.epoch}
    with open(f"{path}.{os.environ.get('RANK', '0')}", "a") as file:
        file.write(json.dumps(entry | {"sources": [batch["sources"] for batch in batches]}) + "\n")


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
