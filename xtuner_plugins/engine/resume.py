"""Finds the checkpoint that a run starts from, and refuses broken and foreign ones before anything is built."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.errors import CheckpointError
from ..config_file import ConfigError
from ..ranges import BITSANDBYTES

AUTO = "auto"
CHECKPOINT_NAME = re.compile(r"(iter|epoch)_(\d+)\.pth")
LAST_CHECKPOINT = "last_checkpoint"
OPTIMIZER_NAMES = "optimizer_names"  # in a plain file: the parameters by their number in its optimizer state
OPTIMIZER_KEYS = ("optimizer", OPTIMIZER_NAMES)
STATE_FORMAT = "state_format"  # in the parameter groups of an optimizer whose state isn't `torch.optim.AdamW`'s
ADAMW = "adamw"


def newest_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a work directory: the one in ``last_checkpoint``, else by modification time."""
    folder = Path(work_dir)
    if not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)]
    found.sort(key=lambda path: (path.stat().st_mtime, int(CHECKPOINT_NAME.fullmatch(path.name)[2])), reverse=True)
    pointer = folder / LAST_CHECKPOINT
    if pointer.is_file():
        # only the name counts: the work directory may have been moved
        named = folder / Path(pointer.read_text(encoding="utf-8", errors="replace").strip()).name
        found = [path for path in found if path == named] + [path for path in found if path != named]
    return next((path for path in found if _is_whole(path)), None)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Facts about a checkpoint; its tensors stay on disk.

    Returns:
        ``iter``; ``has_optimizer``; ``any_strategy``, whether its optimizer state can be read by one that didn't write
        it (plain files of earlier versions don't name parameters); ``state_format`` of its optimizer state.

    Raises:
        CheckpointError: Missing, cut short, or not written by a training run.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    from ..checkpoints.io.reader import load_pickle
    from ..checkpoints.io.zero import checkpoint_directory, open_deepspeed

    if path.is_dir():
        folder = checkpoint_directory(path)
        if folder is None:
            raise CheckpointError(f"{path} is a directory without *_model_states.pt, so no DeepSpeed checkpoint")
        opened = open_deepspeed(folder)
        content = load_pickle(next(file for file in opened.files if file.name.endswith("_model_states.pt")))
        has_optimizer, any_strategy = any("optim_states" in f.name for f in opened.files), True
        found = ADAMW
    else:
        content = load_pickle(path)
        has_optimizer, any_strategy = (isinstance(content, Mapping) and key in content for key in OPTIMIZER_KEYS)
        saved = content.get("optimizer") if has_optimizer else None
        found = ((saved or {}).get("param_groups") or [{}])[0].get(STATE_FORMAT, ADAMW)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping) or "iter" not in meta or not ({"state_dict", "module"} & content.keys()):
        raise CheckpointError(f"{path} was not written by a training run: it holds no weights with meta.iter")
    return {
        "iter": int(meta["iter"]),
        "has_optimizer": has_optimizer,
        "any_strategy": any_strategy,
        "state_format": found,
    }


def state_format(optimizer: str) -> str:
    """What the names of two optimizers share that can read each other's state: paging is no part of it."""
    return optimizer.removeprefix("paged_")


def check_loadable(
    path: str,
    setting: str,
    work_dir: str | Path,
    *,
    deepspeed: bool,
    needs_optimizer: bool,
    optimizer: str = ADAMW,
) -> None:
    """Raises where a run can't start from a checkpoint.

    Args:
        path: The checkpoint.
        setting: The option or key that named it, for the message.
        work_dir: Searched for another checkpoint, for the message.
        deepspeed: This run uses DeepSpeed.
        needs_optimizer: The run resumes, so weights alone don't suffice.
        optimizer: Name of the run's optimizer, as `build_adamw` takes it.

    Raises:
        CheckpointError: One line with the defect and the remedy.
    """
    try:
        facts = read_checkpoint(path)
    except CheckpointError as error:
        newest = newest_checkpoint(Path(path).parent) or newest_checkpoint(work_dir)
        remedy = f"; the newest whole checkpoint is {newest}" if newest else "; no whole checkpoint is beside it"
        raise CheckpointError(f"{setting} {path}: {error}{remedy}") from None
    if needs_optimizer and not facts["has_optimizer"]:
        raise CheckpointError(
            f"{setting} {path}: holds no optimizer state (save_optimizer=False), so no run can go on from it exactly; "
            f"begin a new run from its weights with --cfg-options load_from={path}"
        )
    if needs_optimizer and deepspeed and not facts["any_strategy"]:
        raise CheckpointError(
            f"{setting} {path}: doesn't name the parameters of its optimizer state, which a run under DeepSpeed needs; "
            f"resume without --deepspeed, or begin a new run from its weights with --cfg-options load_from={path}"
        )
    if needs_optimizer and facts["state_format"] != state_format(optimizer):
        raise CheckpointError(
            f"{setting} {path}: holds the state of optimizer={facts['state_format']}, which {optimizer} can't read; "
            f"resume with that one, or begin a new run from its weights with --cfg-options load_from={path}"
        )


def settle_start(cfg: Any, args: Any) -> None:
    """Determines and checks the checkpoint that a run starts from, before anything is built.

    Args:
        cfg: The config with the command line's options; ``resume`` and ``load_from`` are read.
        args: XTuner's parsed arguments. ``args.resume`` (a path, or ``auto`` for the newest whole checkpoint in the
            work directory) is replaced by the checkpoint's path, or by None where ``auto`` finds none.

    Raises:
        CheckpointError: The run can't start from the checkpoint, see `check_loadable`.
        ConfigError: ``--deepspeed`` with an optimizer whose state ZeRO can't cut.
    """
    if args.deepspeed:
        _check_sharded(optimizer_of(cfg))
    resume = args.resume
    if resume is None and cfg.get("resume"):
        resume = cfg.get("load_from") or AUTO
    work_dir = work_dir_of(cfg, args)
    deepspeed = bool(args.deepspeed)
    if resume is not None:
        args.resume = newest_checkpoint(work_dir) if resume == AUTO else resume
        cfg.resume = args.resume is not None
        if cfg.resume:
            args.resume = str(args.resume)
            own = {"deepspeed": deepspeed, "optimizer": optimizer_of(cfg)}
            check_loadable(args.resume, "--resume", work_dir, needs_optimizer=True, **own)
    elif cfg.get("load_from"):
        check_loadable(str(cfg.load_from), "load_from", work_dir, deepspeed=deepspeed, needs_optimizer=False)


def _check_sharded(optimizer: str) -> None:
    """Raises where ZeRO would cut an optimizer's tables like its moments when it saves."""
    if optimizer in BITSANDBYTES:
        raise ConfigError(
            f"optim_wrapper.optimizer.name={optimizer!r} can't run under --deepspeed, which cuts the moments of "
            'torch\'s AdamW only; set optimizer = "adamw", or leave --deepspeed out'
        )


def optimizer_of(cfg: Any) -> str:
    """Name of a config's optimizer, as `build_adamw` takes it; one of another type has none, and counts as AdamW."""
    settings = (cfg.get("optim_wrapper") or {}).get("optimizer") or {}
    return settings.get("name") or ADAMW


def work_dir_of(cfg: Any, args: Any) -> str:
    """Where a run writes, as XTuner's command decides it."""
    return args.work_dir or cfg.get("work_dir") or os.path.join("work_dirs", Path(args.config).stem)


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except (CheckpointError, OSError):
        return False
    return True
