"""Which checkpoint a run goes on from: named, or the newest whole one; anything broken or foreign is refused first."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.io.reader import CheckpointError, load_pickle
from ..checkpoints.io.zero import checkpoint_directory, open_deepspeed

AUTO = "auto"
CHECKPOINT_NAME = re.compile(r"(iter|epoch)_(\d+)\.pth")
LAST_CHECKPOINT = "last_checkpoint"


def newest_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a work directory: what ``last_checkpoint`` names, else by time of writing."""
    folder = Path(work_dir)
    if not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)]
    found.sort(key=lambda path: (path.stat().st_mtime, int(CHECKPOINT_NAME.fullmatch(path.name)[2])), reverse=True)
    pointer = folder / LAST_CHECKPOINT
    if pointer.is_file():
        # By name: a work directory may have been moved.
        named = folder / Path(pointer.read_text(encoding="utf-8", errors="replace").strip()).name
        found = [path for path in found if path == named] + [path for path in found if path != named]
    return next((path for path in found if _is_whole(path)), None)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of itself; its tensors stay on disk.

    Returns:
        ``world_size`` (ranks that wrote it; None for a plain file, which any number can read), ``iter``,
        ``has_optimizer``.

    Raises:
        CheckpointError: Missing, cut short, or not written by a training run.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
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


def resolve_resume(resume: str, work_dir: str | Path, *, deepspeed: bool, world_size: int | None) -> str | None:
    """The checkpoint that ``--resume`` means.

    Args:
        resume: A path, or ``auto`` for the newest whole checkpoint of ``work_dir``.
        work_dir: Where this run writes.
        deepspeed: This run uses DeepSpeed.
        world_size: Processes of this run; None where they aren't known yet.

    Returns:
        Its path; None where ``auto`` finds none, so that the run starts from the beginning.

    Raises:
        CheckpointError: The checkpoint can't be resumed; names the newest one that can be.
    """
    if resume == AUTO:
        newest = newest_checkpoint(work_dir)
        if newest is None:
            return None
        resume = str(newest)
    check_loadable(resume, "--resume", work_dir, deepspeed=deepspeed, world_size=world_size, needs_optimizer=True)
    return resume


def check_loadable(
    path: str, setting: str, work_dir: str | Path, *, deepspeed: bool, world_size: int | None, needs_optimizer: bool
) -> None:
    """Raises where a run can't begin from a checkpoint.

    Args:
        path: The checkpoint.
        setting: Where the user named it, for the message.
        work_dir: Where another one is looked for, for the message.
        deepspeed: This run uses DeepSpeed.
        world_size: Processes of this run; None where they aren't known yet.
        needs_optimizer: The run goes on, so weights alone don't do.

    Raises:
        CheckpointError: One line with what is wrong and the remedy.
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
    """Settles, before anything is built, what a run begins from.

    Args:
        cfg: The config, with the command line's options in it; ``resume`` and ``load_from`` are read.
        args: XTuner's parsed arguments; ``args.resume`` is replaced by the path that it means.
        world_size: Processes of the run; None where they aren't known yet.

    Raises:
        CheckpointError: As `resolve_resume`.
    """
    resume = args.resume
    if resume is None and cfg.get("resume"):
        resume = cfg.get("load_from") or AUTO
    work_dir = args.work_dir or cfg.get("work_dir") or os.path.join("work_dirs", Path(args.config).stem)
    facts = {"deepspeed": bool(args.deepspeed), "world_size": world_size}
    if resume is not None:
        args.resume = resolve_resume(str(resume), work_dir, **facts)
        cfg.resume = args.resume is not None
    elif cfg.get("load_from"):
        check_loadable(str(cfg.load_from), "load_from", work_dir, needs_optimizer=False, **facts)


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except (CheckpointError, OSError):
        return False
    return True
