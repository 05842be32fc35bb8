"""Starts `xtuner train` and tells the truth about how it ended.

``xtuner train`` exits 0 even when training failed, because it ignores the status of the process that it starts. This
launcher takes the same arguments and environment variables, checks the config before any process starts, and exits
with the status of the training.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from mmengine.config import DictAction

from .config_check import ConfigError, check_config, load_config

USAGE_ERROR = 2


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``xtuner train``."""
    parser = argparse.ArgumentParser(
        prog="tools/train.py",
        description="Train a config with XTuner, with an honest exit status.",
        epilog="Environment: NPROC_PER_NODE (processes on this node, 1), NNODES (1), NODE_RANK (0), ADDR (127.0.0.1), "
        "PORT (a free one). Under Slurm pass --launcher slurm (see tools/slurm_train.sh).",
    )
    parser.add_argument("config", help="path of a Python config, e.g. configs/finetune_lora.py")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/<config's name>)")
    parser.add_argument("--deepspeed", help="deepspeed_zero1 | deepspeed_zero2 | deepspeed_zero3 | a JSON file")
    parser.add_argument("--resume", help="checkpoint to go on from (.pth file or DeepSpeed directory)")
    parser.add_argument("--seed", type=int, help="random seed")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="e.g. train_cfg.max_iters=100",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default=None, help="job launcher")
    return parser


def training_command(argv: Sequence[str], env: Mapping[str, str], launcher: str | None) -> list[str]:
    """The command line of the training processes.

    Args:
        argv: Arguments for ``xtuner train``.
        env: Environment variables (NPROC_PER_NODE, NNODES, NODE_RANK, ADDR, PORT).
        launcher: The user's ``--launcher``; None lets the number of processes decide.

    Raises:
        ConfigError: A variable isn't a whole number, or several nodes without a PORT.
    """
    process = ["-m", "xtuner_plugins.train_process", *argv]
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


def free_port() -> int:
    """A TCP port that is free on 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Checks, starts, waits; returns the exit status of the training."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(argv)
    try:
        cfg = load_config(args.config, args.cfg_options)
        check_config(cfg)
        command = training_command(argv, os.environ, args.launcher)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    root = os.getcwd()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    return _run(command, env)


def _run(command: list[str], env: dict[str, str]) -> int:
    """Runs the training in a process of its own; an interrupt or a termination is passed on to it."""
    process = subprocess.Popen(command, env=env)

    def pass_on(signum: int, _frame) -> None:
        process.send_signal(signum)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                # The terminal has sent the interrupt to the training too; wait for its own ending.
                continue
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
