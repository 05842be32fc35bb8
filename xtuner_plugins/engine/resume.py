"""Finds the checkpoint that a run starts from, and refuses broken and foreign ones before anything is built."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.errors import CheckpointError

AUTO = "auto"
CHECKPOINT_NAME = re.compile(r"(iter|epoch)_(\d+)\.pth")
LAST_CHECKPOINT = "last_checkpoint"


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
        ``world_size`` (ranks that wrote it; None for a plain file, which any number can read), ``iter``,
        ``has_optimizer``.

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
        world_size, has_optimizer = opened.details["world_size"], any("optim_states" in f.name for f in opened.files)
    else:
        content = load_pickle(path)
        world_size, has_optimizer = None, isinstance(content, Mapping) and "optimizer" in content
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping) or "iter" not in meta or not ({"state_dict", "module"} & content.keys()):
        raise CheckpointError(f"{path} was not written by a training run: it holds no weights with meta.iter")
    return {"world_size": world_size, "iter": int(meta["iter"]), "has_optimizer": has_optimizer}


def check_loadable(
    path: str, setting: str, work_dir: str | Path, *, deepspeed: bool, world_size: int | None, needs_optimizer: bool
) -> None:
    """Raises where a run can't start from a checkpoint.

    Args:
        path: The checkpoint.
        setting: The option or key that named it, for the message.
        work_dir: Searched for another checkpoint, for the message.
        deepspeed: This run uses DeepSpeed.
        world_size: Processes of this run; None if not known yet.
        needs_optimizer: The run resumes, so weights alone don't suffice.

    Raises:
        CheckpointError: One line with the defect and the remedy.
    """
    try:
        facts = read_checkpoint(path)
    except CheckpointError as error:
        newest = newest_checkpoint(Path(path).parent) or newest_checkpoint(work_dir)
        remedy = f"; the newest whole checkpoint is {newest}" if newest else "; no whole checkpoint is beside it"
        raise CheckpointError(f"{setting} {path}: {error}{remedy}") from None
    is_directory = Path(path).is_dir()
    if is_directory != deepspeed:
        raise CheckpointError(
            f"{setting} {path}: "
            + (
                "a DeepSpeed directory; start with the --deepspeed that wrote it"
                if is_directory
                else "a plain file, which DeepSpeed can't read; start without --deepspeed"
            )
            + ", or export it and train on from the export"
        )
    if None not in (facts["world_size"], world_size) and facts["world_size"] != world_size:
        raise CheckpointError(
            f"{setting} {path}: written by {facts['world_size']} processes, this run has {world_size}; start "
            f"{facts['world_size']}, or export it and train on from the export"
        )
    if needs_optimizer and not facts["has_optimizer"]:
        raise CheckpointError(
            f"{setting} {path}: holds no optimizer state (save_optimizer=False), so no run can go on from it exactly; "
            "load_from takes its weights alone"
        )


def settle_start(cfg: Any, args: Any, world_size: int | None) -> None:
    """Determines and checks the checkpoint that a run starts from, before anything is built.

    Args:
        cfg: The config with the command line's options; ``resume`` and ``load_from`` are read.
        args: XTuner's parsed arguments. ``args.resume`` (a path, or ``auto`` for the newest whole checkpoint in the
            work directory) is replaced by the checkpoint's path, or by None where ``auto`` finds none.
        world_size: Processes of the run; None if not known yet.

    Raises:
        CheckpointError: The run can't start from the checkpoint, see `check_loadable`.
    """
    resume = args.resume
    if resume is None and cfg.get("resume"):
        resume = cfg.get("load_from") or AUTO
    work_dir = work_dir_of(cfg, args)
    facts = {"deepspeed": bool(args.deepspeed), "world_size": world_size}
    if resume is not None:
        args.resume = newest_checkpoint(work_dir) if resume == AUTO else resume
        cfg.resume = args.resume is not None
        if cfg.resume:
            args.resume = str(args.resume)
            check_loadable(args.resume, "--resume", work_dir, needs_optimizer=True, **facts)
    elif cfg.get("load_from"):
        check_loadable(str(cfg.load_from), "load_from", work_dir, needs_optimizer=False, **facts)


def work_dir_of(cfg: Any, args: Any) -> str:
    """Where a run writes, as XTuner's command decides it."""
    return args.work_dir or cfg.get("work_dir") or os.path.join("work_dirs", Path(args.config).stem)


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except (CheckpointError, OSError):
        return False
    return True
