"""Starts `xtuner train` and exits with the status of the training.

``xtuner train`` exits 0 even when training failed, because it ignores the status of the process that it starts. This
launcher takes the same arguments and environment variables and checks the config before any process starts.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from ... import settings
from ...errors import told
from ...files import write_whole
from ...processes import allocator_settings, free_port, num_cores, quiet_imports
from ...weights.errors import CheckpointError
from ..check.text import check_text, step_note
from ..run.resume import check_same_run, settle_start, state_note, work_dir_of
from ..watch.stopping import COMMAND
from .ranks import run_ranks

USAGE_ERROR = 2
TASKS = {"slurm": "SLURM_NTASKS", "mpi": "OMPI_COMM_WORLD_SIZE"}  # that hold the number of ranks
PREPARED = "xtuner_plugins.engine.prepared"
SHARE_CORES = "XTUNER_PLUGINS_SHARE_CORES"


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``xtuner train``."""
    parser = argparse.ArgumentParser(
        prog="tools/train.py",
        description="Train a config with XTuner, with an honest exit status.",
        epilog="Environment: NPROC_PER_NODE (processes on this node, 1), NNODES (1), NODE_RANK (0), ADDR (127.0.0.1), "
        "PORT (a free one). Under Slurm pass --launcher slurm (see tools/slurm_train.sh).",
    )
    parser.add_argument("config", help="a config of configs/ by its name, e.g. finetune_lora, or a path")
    settings.add_config_options(parser)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/<config's name>)")
    parser.add_argument("--deepspeed", help=f"{' | '.join(settings.DEEPSPEED)} | a JSON file")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="checkpoint to resume from (.pth file or DeepSpeed directory); none or 'auto': the newest whole one",
    )
    parser.add_argument("--seed", type=int, help="random seed")
    parser.add_argument("--dry-run", action="store_true", help="check everything and plan the run; train no step")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default=None, help="job launcher")
    return parser


def training_processes(
    argv: Sequence[str], env: Mapping[str, str], launcher: str | None
) -> tuple[list[str], list[dict[str, str]]]:
    """The command line of the training processes, and what each has in its environment besides ``env``.

    Args:
        argv: Arguments for ``xtuner train``.
        env: Environment variables (NPROC_PER_NODE, NNODES, NODE_RANK, ADDR, PORT).
        launcher: The user's ``--launcher``; None uses ``pytorch`` for several processes.

    Raises:
        ConfigError: A variable isn't a whole number, or several nodes without a PORT.
    """
    command = [sys.executable, "-m", "xtuner_plugins.engine.launch.train_process", *argv]
    nnodes, nproc, node = (_whole_number(env, name) for name in ("NNODES", "NPROC_PER_NODE", "NODE_RANK"))
    if launcher in ("none", "slurm", "mpi") or (launcher is None and nnodes == 1 and nproc == 1):
        return command, [{}]
    if nnodes > 1 and "PORT" not in env:
        raise settings.ConfigError("NNODES is above 1, so every node needs the same PORT; set it, e.g. PORT=29500")
    if node >= nnodes:
        raise settings.ConfigError(f"NODE_RANK={node} is out of range: NNODES={nnodes}")
    meeting = {
        "MASTER_ADDR": env.get("ADDR", "127.0.0.1"),
        "MASTER_PORT": env.get("PORT") or str(free_port()),
        "WORLD_SIZE": str(nnodes * nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1"),  # as torchrun: processes share the cores
    }
    ranks = [{**meeting, "RANK": str(node * nproc + local), "LOCAL_RANK": str(local)} for local in range(nproc)]
    return [*command, *([] if launcher else ["--launcher", "pytorch"])], ranks


def check_processes(processes: int, env: Mapping[str, str]) -> None:
    """Raises `ConfigError` where this node has fewer GPUs, or without GPUs fewer cores, than processes."""
    import torch

    num_gpus = torch.cuda.device_count()
    limit, of = (num_gpus, "GPUs") if num_gpus else (num_cores(), "cores and no GPU")
    if processes > limit and (num_gpus or env.get(SHARE_CORES) != "1"):
        share = "" if num_gpus else f", or {SHARE_CORES}=1 to let them share the cores"
        raise settings.ConfigError(
            f"NPROC_PER_NODE={processes}, but this machine has {limit} {of}; set it to {limit} or less{share}"
        )


def check_work_dir(path: str) -> None:
    """Raises `ConfigError` where no run can write; makes nothing, since a dry run leaves nothing behind."""
    above = next(each for each in Path(path, "-").absolute().parents if os.path.exists(each))
    if not os.access(f"{above}/", os.W_OK):  # nor is a file with a slash accessible
        raise settings.ConfigError(f"--work-dir {path}: {above} is no directory that can be written to; name another")


def make_reloadable(cfg: Config) -> None:
    """Replaces what a dump would turn into a text that can't be trained: the function of ``model_resource``."""
    cfg._cfg_dict.pop("model_resource", None)
    cfg._cfg_dict.pop("pretrained_model_name_or_path", None)
    own = (cfg.get("custom_imports") or {}).get("imports", [])
    cfg.custom_imports = dict(imports=[*(each for each in own if each != PREPARED), PREPARED])


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the arguments and runs the training; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(argv)
    try:
        # First what the text alone tells: nothing large is imported for that.
        args.config = settings.find_config(args.config)
        cfg = settings.read_config(args.config, settings.parse_words(args.set, args.cfg_options))
        args.work_dir = work_dir_of(cfg, args)
        check_work_dir(args.work_dir)
        resolved = copy.deepcopy(cfg)  # what follows fills in a checkpoint to resume from
        # The training processes read the config with the values of the command line, and change nothing in it.
        written = Path(args.work_dir, "settings", Path(args.config).name)
        given = {name: getattr(args, name) for name in ("work_dir", "deepspeed", "resume", "seed", "launcher")}
        words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
        command, ranks = training_processes([str(written), *words], os.environ, args.launcher)
        deepspeed = settings.read_deepspeed(args.deepspeed) if args.deepspeed else None
        settle_start(cfg, args)
        check_text(cfg)
        quiet_imports()
        if args.launcher in (None, "pytorch"):
            check_processes(_whole_number(os.environ, "NPROC_PER_NODE"), os.environ)
        import torch

        from ...datasets.samplers import check_groups
        from ..check.build import check_build

        check_build(cfg, deepspeed)
        num_ranks = int(os.environ.get(TASKS.get(args.launcher, ""), ranks[0].get("WORLD_SIZE", 1)))
        check_groups(num_ranks, cfg.model.get("sequence_parallel", 1))
        notes = check_same_run(cfg, args, num_ranks=num_ranks) if cfg.get("resume") else [step_note(cfg, num_ranks)]
        for note in filter(None, [*notes, state_note(cfg)]):
            print(f"note: {note}", file=sys.stderr)
        if args.dry_run:
            return 0
        make_reloadable(resolved)
        write_whole(written, lambda part: part.write_text(resolved.pretty_text, encoding="utf-8"))
    except (settings.ConfigError, CheckpointError, OSError) as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return USAGE_ERROR
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    env = {COMMAND: shlex.join(["python", sys.argv[0], *argv]), **os.environ, "PYTHONPATH": path}
    env |= allocator_settings(env, torch.cuda.device_count() > 0)
    return run_ranks(command, [{**env, **rank} for rank in ranks])


def _whole_number(env: Mapping[str, str], name: str) -> int:
    """A variable of the environment: ``NODE_RANK`` from 0, others from 1; that is what they are by default."""
    low = 0 if name == "NODE_RANK" else 1
    text = env.get(name, str(low))
    if not text.isdecimal() or int(text) < low:
        raise settings.ConfigError(f"{name}={text!r} is no whole number, {low} or more")
    return int(text)


if __name__ == "__main__":  # as `xtuner train` is replaced, see `entry`
    sys.exit(main())
