"""Starts `xtuner train` and exits with the status of the training.

``xtuner train`` exits 0 even when training failed, because it ignores the status of the process that it starts. This
launcher takes the same arguments and environment variables and checks the config before any process starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..checkpoints.errors import CheckpointError
from ..config_file import ConfigError, find_config, import_types, read_config
from ..engine.resume import settle_start, work_dir_of
from ..leaf import Leaf
from ..planning.strategies import read_deepspeed
from ..processes import free_port, start_bound
from .arguments import add_config_options, parse_options
from .terminal import quiet_imports

USAGE_ERROR = 2


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``xtuner train``."""
    parser = argparse.ArgumentParser(
        prog="tools/train.py",
        description="Train a config with XTuner, with an honest exit status.",
        epilog="Environment: NPROC_PER_NODE (processes on this node, 1), NNODES (1), NODE_RANK (0), ADDR (127.0.0.1), "
        "PORT (a free one). Under Slurm pass --launcher slurm (see tools/slurm_train.sh).",
    )
    parser.add_argument("config", help="a config of configs/ by its name, e.g. finetune_lora, or a path")
    add_config_options(parser)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/<config's name>)")
    parser.add_argument("--deepspeed", help="deepspeed_zero1 | deepspeed_zero2 | deepspeed_zero3 | a JSON file")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="checkpoint to resume from (.pth file or DeepSpeed directory); none or 'auto': the newest whole one",
    )
    parser.add_argument("--seed", type=int, help="random seed")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default=None, help="job launcher")
    return parser


def training_command(argv: Sequence[str], env: Mapping[str, str], launcher: str | None) -> list[str]:
    """The command line of the training processes.

    Args:
        argv: Arguments for ``xtuner train``.
        env: Environment variables (NPROC_PER_NODE, NNODES, NODE_RANK, ADDR, PORT).
        launcher: The user's ``--launcher``; None uses ``torchrun`` for several processes.

    Raises:
        ConfigError: A variable isn't a whole number, or several nodes without a PORT.
    """
    process = ["-m", "xtuner_plugins.cli.train_process", *argv]
    nnodes = _whole_number(env, "NNODES", 1)
    nproc = _whole_number(env, "NPROC_PER_NODE", 1)
    if launcher in ("none", "slurm", "mpi") or (launcher is None and nnodes == 1 and nproc == 1):
        return [sys.executable, *process]
    if nnodes > 1 and "PORT" not in env:
        raise ConfigError("NNODES is above 1, so every node needs the same PORT; set it, e.g. PORT=29500")
    torchrun = [
        "-m",
        "torch.distributed.run",
        f"--nnodes={nnodes}",
        f"--node_rank={_whole_number(env, 'NODE_RANK', 0)}",
        f"--nproc_per_node={nproc}",
        f"--master_addr={env.get('ADDR', '127.0.0.1')}",
        f"--master_port={env.get('PORT') or free_port()}",
    ]
    own_launcher = [] if launcher else ["--launcher", "pytorch"]
    return [sys.executable, *torchrun, *process, *own_launcher]


def check_gpus(processes: int) -> None:
    """Raises `ConfigError` where there are GPUs, but fewer than processes on this node."""
    import torch

    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < processes:
        text = f"NPROC_PER_NODE={processes}, but this machine has {num_gpus} GPUs"
        raise ConfigError(f"{text}; set it to {num_gpus} or less")


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the arguments and runs the training; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(argv)
    try:
        # First what the text alone tells: nothing large is imported for that.
        args.config = find_config(args.config)
        text = Leaf.read(args.config).changed(args.set).standalone() if args.set else None
        cfg = read_config(args.config, parse_options(args.cfg_options), text)
        args.work_dir = work_dir_of(cfg, args)
        command = training_command(_arguments(args), os.environ, args.launcher)
        if args.deepspeed:
            read_deepspeed(args.deepspeed)
        nodes, processes = _whole_number(os.environ, "NNODES", 1), _whole_number(os.environ, "NPROC_PER_NODE", 1)
        # Slurm and MPI decide the number of processes.
        settle_start(cfg, args, None if args.launcher in ("slurm", "mpi") else nodes * processes)
        from ..engine.config_check import check_config, check_early, check_text

        check_text(cfg)
        quiet_imports()
        if args.launcher in (None, "pytorch"):
            check_gpus(processes)
        check_early(cfg)
        import_types(cfg)
        check_config(cfg)
        if text is not None:
            _write_settings(_settings_file(args), text)
    except (ConfigError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    return _run(command, {**os.environ, "PYTHONPATH": path})


def _settings_file(args: argparse.Namespace) -> Path:
    """Where the config with the values of ``--set`` lies: the training processes read it there."""
    return Path(args.work_dir, "settings", Path(args.config).name)


def _write_settings(path: Path, text: str) -> None:
    """Writes whole or not at all: under Slurm every task writes the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{socket.gethostname()}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _arguments(args: argparse.Namespace) -> list[str]:
    """The arguments of ``xtuner train`` that mean the same: a path for the config, and no ``--set``."""
    words = [str(_settings_file(args) if args.set else args.config)]
    for name in ("work_dir", "deepspeed", "resume", "seed", "launcher"):
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}={value}"]
    return [*words, "--cfg-options", *args.cfg_options] if args.cfg_options else words


def _run(command: list[str], env: dict[str, str]) -> int:
    """Runs the training in a process that ends with this one; passes SIGTERM and SIGUSR1 on to it."""
    process = start_bound(command, env=env)

    def pass_on(signum: int, _frame) -> None:
        process.send_signal(signum)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # the terminal has interrupted the training too
                status = process.wait()
                break
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _whole_number(env: Mapping[str, str], name: str, default: int) -> int:
    try:
        value = int(env.get(name, default))
    except ValueError:
        raise ConfigError(f"{name}={env[name]!r} is not a whole number") from None
    if value < 0 or (value == 0 and name != "NODE_RANK"):
        raise ConfigError(f"{name}={value} is out of range")
    return value
