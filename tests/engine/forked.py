"""Whole training runs in forked children: a run as `tools/train.py` starts it, without paying for its imports again.

The children come from a server that has imported everything and computed nothing. Forking a process that has computed
would copy locks of threads that the child lacks: a thread pool of OpenMP hangs the child.
"""

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
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch.utils._pytree import keystr, tree_leaves_with_path

from tests.conftest import ROOT
from tests.small_data import write_dataset  # noqa: F401
from xtuner_plugins.engine.launch.launcher import SHARE_CORES, training_processes
from xtuner_plugins.engine.watch.console import STEP_LINE  # noqa: F401
from xtuner_plugins.settings import SETTINGS

HUNG_AFTER_S = 300
# Processes and strategy of a run, by a name.
LAYOUTS = {"plain": (1, None), "ddp": (2, None), **{f"zero{n}": (2, f"deepspeed_zero{n}") for n in (1, 2, 3)}}


def scalars(work_dir: Path, key: str) -> list[dict[str, float]]:
    """What the newest start of a run logged in the steps that have a ``key``."""
    newest = max(work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if key in line]


def logged(work_dir: Path, key: str = "loss") -> list[float]:
    """The values of a ``key`` alone."""
    return [line[key] for line in scalars(work_dir, key)]


def base_and_data(base: Path, data: tuple[Path, Path]) -> dict[str, str | list[str]]:
    """Options that give a recipe another base and other data."""
    dataset = "train_dataloader.dataset"
    own = {f"{dataset}.data_paths": [str(data[0])], f"{dataset}.image_folders": [str(data[1])]}
    return {"model.base": str(base), **own}


def contents(path: Path) -> dict[str, torch.Tensor]:
    """Weights and the optimizer's state of a checkpoint that any strategy wrote, by kind and parameter."""
    from xtuner_plugins.engine.run.transfer import read_state

    state = read_state(path)
    found = {f"weight {name}": tensor.read() for name, tensor in state.weights.items()}
    for name, entries in state.states.items():
        for key, value in tree_leaves_with_path(entries):  # of 8 bits some are in a dict
            found[f"{keystr(key)} {name}"] = value.read() if hasattr(value, "read") else torch.as_tensor(value)
    return found


def require_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Fails where two sets of tensors differ in a name or a bit."""
    assert left.keys() == right.keys() and left
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def training(
    work_dir: Path,
    base: Path,
    data: tuple[Path, Path],
    *,
    processes: int = 1,
    deepspeed: str | None = None,
    options: dict | None = None,
    config: str = "configs/toy/toy_finetune_full.py",
    extra: tuple[str, ...] = (),
) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a training on a global batch of 4."""
    settings = {
        **base_and_data(base, data),
        "train_dataloader.batch_size": 4 // processes,
        "train_dataloader.num_workers": 0,
        "default_hooks.logger.interval": 1,
        "train_cfg.max_epochs": 1,
        "optim_wrapper.optimizer.lr": 1e-3,
        "param_scheduler.warmup_ratio": 0.0,
        **(options or {}),
    }
    arguments = [config, "--work-dir", str(work_dir), "--seed", "7", *extra]
    if deepspeed:
        arguments += ["--deepspeed", deepspeed]
    arguments += ["--cfg-options", *(f"{key}={value}" for key, value in settings.items())]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NPROC_PER_NODE": str(processes)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return arguments, env


class Run(NamedTuple):
    """How a run ended: its folder, exit codes by rank (negative: a signal), what rank 0 wrote, and the others."""

    work_dir: Path
    codes: list[int]
    output: str
    others: str

    @property
    def ok(self) -> bool:
        return not any(self.codes)

    @property
    def errors(self) -> list[str]:
        """The lines of rank 0 that tell of an error."""
        return [line for line in self.output.splitlines() if line.startswith("error")]

    def logged(self, key: str = "loss") -> list[float]:
        return logged(self.work_dir, key)

    def scalars(self, key: str) -> list[dict[str, float]]:
        return scalars(self.work_dir, key)

    def saved(self, step: int) -> Path:
        return self.work_dir / f"iter_{step}.pth"


def run_forked(arguments, env, work_dir, *, processes: int = 1, prepare: Callable[[], None] | None = None) -> Run:
    """Runs ``train_process *arguments`` (the config's path first) once per rank; logs go beside ``work_dir``.

    ``prepare`` is called in each child before it trains. It is pickled: a function of a module, or a `partial` of one.
    """
    command, ranks = training_processes(arguments, {"NPROC_PER_NODE": str(processes)}, None)
    work_dir.parent.mkdir(parents=True, exist_ok=True)
    children = []
    for number, rank in enumerate(ranks):
        (log := Path(f"{work_dir}.rank{number}.log")).touch()
        arguments = ["train", *command[3:]], env | rank | {SHARE_CORES: "1"}, log, prepare
        children.append((fork_server().Process(target=_train, args=arguments), log))
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # the first start starts the server
            children[-1][0].start()
    codes = _wait([child for child, _ in children])
    said = [log.read_text(errors="replace") for _, log in children]
    return Run(work_dir, codes, said[0], "".join(said[1:])[-3000:])


def train_forked(work_dir, base, data, *, processes: int = 1, prepare: Callable | None = None, **case) -> Run:
    """`run_forked` on a global batch of 4, with the arguments of `training`."""
    arguments, env = training(work_dir, base, data, processes=processes, **case)
    return run_forked(arguments, env, work_dir, processes=processes, prepare=prepare)


class Trainer(NamedTuple):
    """Trains on a data set in a folder of its own; what isn't said otherwise has to end well."""

    folder: Path
    base: Path
    data: tuple[Path, Path]

    def __call__(self, name, leaf="toy_finetune_full", *, codes=(0,), layout=None, data=None, **case) -> Run:
        """Trains a toy leaf in the folder ``name``.

        ``codes`` are the statuses that ranks may end with, at least one of them with the first; ``layout`` is a name of
        `LAYOUTS`; ``case`` has values by short names, ``options`` by keys, and what `train_forked` takes.
        """
        if layout:
            case["processes"], case["deepspeed"] = LAYOUTS[layout]
        named = {SETTINGS[key].key: case.pop(key) for key in [*case] if key in SETTINGS}
        case |= {"options": named | (case.get("options") or {}), "config": f"configs/toy/{leaf}.py"}
        run = train_forked(self.folder / name, self.base, data or self.data, **case)
        assert codes[0] in run.codes and {*run.codes} <= {*codes}, f"{run.codes}\n{run.output[-3000:]}{run.others}"
        return run


def at_call(path: str, number: int | None, do: Callable, rank: int | None = None) -> None:
    """Prepares a run for a fault: the n-th call (None: each) of a function below xtuner_plugins does something first.

    ``do`` gets the arguments of the call; it is done on one rank, or on all.
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


def fault(*args) -> Callable[[], None]:
    """`at_call` as a run's ``prepare``."""
    return functools.partial(at_call, *args)


def send(number: int, *_) -> None:
    """The process gets a signal."""
    os.kill(os.getpid(), number)
    time.sleep(0.5)


@functools.cache
def fork_server():
    """The context whose children come from the server."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["deepspeed", "xtuner.tools.train", "xtuner_plugins.engine.launch.train_process"])
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
        os._exit(code)  # multiprocessing would wait for loading processes, which ignore SIGTERM


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
