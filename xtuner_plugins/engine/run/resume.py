"""Finds the checkpoint that a run starts from, and refuses broken and foreign ones before anything is built."""

from __future__ import annotations

import os
from pathlib import Path
from types import FunctionType
from typing import Any

from mmengine.registry import DATASETS

from ...settings import ConfigError
from ...weights import record
from ...weights.errors import CheckpointError
from ...weights.work_dir import newest_checkpoint, read_checkpoint

AUTO, RESUME, ADAMW = "auto", "--resume", "AdamW"
BITSANDBYTES = ("8bit", "32bit")  # ends of the names of its classes, as MMEngine registers them


def check_loadable(path: str, setting: str, work_dir: str | Path) -> None:
    """Raises where a run can't start from a checkpoint.

    Args:
        path: The checkpoint.
        setting: The option or key that named it: ``--resume`` needs more than weights.
        work_dir: Searched for another checkpoint, for the message.

    Raises:
        CheckpointError: One line with the defect and the remedy.
    """
    try:
        facts = read_checkpoint(path)
    except CheckpointError as error:
        newest = newest_checkpoint(Path(path).parent) or newest_checkpoint(work_dir)
        remedy = f"; the newest whole checkpoint is {newest}" if newest else "; no whole checkpoint is beside it"
        raise CheckpointError(f"{setting} {path}: {error}{remedy}") from None
    if setting == RESUME and not facts["has_optimizer"]:
        raise CheckpointError(
            f"{setting} {path}: holds no optimizer state (save_optimizer=False), so no run can go on from it exactly; "
            f"begin a new run from its weights with --cfg-options load_from={path}"
        )


def settle_start(cfg: Any, args: Any) -> None:
    """Determines and checks the checkpoint that a run starts from, before anything is built.

    Args:
        cfg: The config with the command line's options; ``resume`` and ``load_from`` are read.
        args: XTuner's parsed arguments. ``args.resume`` (a path, or ``auto`` for the newest whole checkpoint in the
            work directory) is replaced by the checkpoint's path, or by None where ``auto`` finds none.

    Raises:
        CheckpointError: The run can't start from the checkpoint, see `check_loadable`.
        ConfigError: An optimizer whose state ZeRO can't cut, or whose pages don't come back.
    """
    _check_optimizer(optimizer_of(cfg), bool(args.deepspeed))
    resume = args.resume
    if resume is None and cfg.get("resume"):
        resume = cfg.get("load_from") or AUTO
    work_dir = work_dir_of(cfg, args)
    if resume is not None:
        args.resume = newest_checkpoint(work_dir) if resume == AUTO else resume
        cfg.resume = args.resume is not None
        if cfg.resume:
            args.resume = str(args.resume)
            check_loadable(args.resume, RESUME, work_dir)
    elif cfg.get("load_from"):
        check_loadable(str(cfg.load_from), "load_from", work_dir)


def check_same_run(cfg: Any, args: Any, *, num_ranks: int) -> list[str]:
    """Compares a run that resumes with the record in its checkpoint, before anything is built.

    Args:
        cfg: The config with the command line's options, checked.
        args: XTuner's parsed arguments, after `settle_start`.
        num_ranks: Processes of this run.

    Returns:
        What has changed without making it another run, as lines for the user.

    Raises:
        CheckpointError: As `record.require_same_run`.
    """
    from ...datasets.images.resize_rules import resize_facts
    from ...dtypes import resolve_dtype

    path, deepspeed = args.resume, bool(args.deepspeed)
    then = read_checkpoint(path)["record"]
    if then is None and state_note(cfg):
        return []
    dataset, dtype = DATASETS.build(cfg.train_dataloader.dataset), resolve_dtype(cfg.model.get("dtype", "auto"))
    seed = (cfg.get("randomness") or {}).get("seed") if args.seed is None else args.seed
    own = {"ranks": num_ranks, "seed": seed, "dtype": str(dtype), "resize_rule": resize_facts()["resize_rule"]}
    now = record.make(cfg, dataset, deepspeed=deepspeed, **own)
    defaults = record.defaults_of(record.settings_of(cfg, deepspeed=deepspeed))
    return record.require_same_run(then, now, defaults, path)


def state_note(cfg: Any) -> str:
    """That nothing saves a record of the run in its checkpoints; '' where `StateHook` does."""
    if any(record.plain(hook).get("type") == "StateHook" for hook in cfg.get("custom_hooks") or []):
        return ""
    told = "no StateHook in custom_hooks (a list of your own replaces ours; add it): checkpoints hold no record, so"
    return f"{told} they can't be exported, and nothing tells whether a resume is of the same run"


def _check_optimizer(optimizer: str, deepspeed: bool) -> None:
    """Raises where ZeRO would cut an optimizer's tables like its moments when it saves, or a resume ends its paging."""
    if optimizer.startswith("Paged"):
        raise ConfigError(
            f"optim_wrapper.optimizer.type={optimizer!r}: after a resume its moments would be held on the GPU, where "
            f"they don't fit; set it to {optimizer.removeprefix('Paged')!r}, or use --deepspeed deepspeed_zero2_offload"
        )
    if deepspeed and optimizer.endswith(BITSANDBYTES):
        raise ConfigError(
            f"optim_wrapper.optimizer.type={optimizer!r} can't run under --deepspeed, which cuts the moments of "
            f"torch's AdamW only; set it to {ADAMW!r}, or leave --deepspeed out"
        )


def optimizer_of(cfg: Any) -> str:
    """The class of a config's optimizer; `build_adamw` makes an AdamW. Nothing is imported for that."""
    settings = (cfg.get("optim_wrapper") or {}).get("optimizer") or {}
    kind = dict.get(settings, "type", ADAMW)  # ConfigDict's own `get` imports it
    name = kind.__name__ if isinstance(kind, (type, FunctionType)) else str(kind).rpartition(".")[2]
    return ADAMW if name == "build_adamw" else name


def work_dir_of(cfg: Any, args: Any) -> str:
    """Where a run writes, as XTuner's command decides it."""
    return args.work_dir or cfg.get("work_dir") or os.path.join("work_dirs", Path(args.config).stem)
