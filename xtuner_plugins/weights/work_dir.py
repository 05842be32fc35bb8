"""What a training run leaves in its work directory: checkpoints, a pointer to the newest, and the config.

::

    work_dirs/finetune_lora/finetune_lora.py        the config as it ran, written by MMEngine; read by nothing here
    work_dirs/finetune_lora/iter_1000.pth           a checkpoint, a file or (DeepSpeed) a directory
    work_dirs/finetune_lora/last_checkpoint         names the newest
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import record
from .errors import CheckpointError

CHECKPOINT_NAME = re.compile(r"(iter|epoch)_(\d+)\.pth")
LAST_CHECKPOINT = "last_checkpoint"
OPTIMIZER_NAMES = "optimizer_names"  # in a plain file: the parameters by their number in its optimizer state
OPTIMIZER_KEYS = ("optimizer", OPTIMIZER_NAMES)


def checkpoint_step(path: Path) -> int | None:
    """The number in a checkpoint's name; None for any other name."""
    match = CHECKPOINT_NAME.fullmatch(path.name)
    return int(match[2]) if match else None


def newest_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a work directory: the one in ``last_checkpoint``, else by modification time."""
    folder = Path(work_dir)
    if not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if checkpoint_step(path) is not None]
    found.sort(key=lambda path: (path.stat().st_mtime, checkpoint_step(path)), reverse=True)
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
        it (plain files of earlier versions don't name parameters); ``plan``, the position in the data, and ``record``,
        of its run, each None in checkpoints without one.

    Raises:
        CheckpointError: Missing, cut short, or not written by a training run.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    from .reading import load_pickle
    from .zero import checkpoint_directory, open_deepspeed

    if path.is_dir():
        folder = checkpoint_directory(path)
        if folder is None:
            raise CheckpointError(f"{path} is a directory without *_model_states.pt, so no DeepSpeed checkpoint")
        opened = open_deepspeed(folder)
        content = load_pickle(next(file for file in opened.files if file.name.endswith("_model_states.pt")))
        has_optimizer, any_strategy = any("optim_states" in f.name for f in opened.files), True
    else:
        content = load_pickle(path)
        has_optimizer, any_strategy = (isinstance(content, Mapping) and key in content for key in OPTIMIZER_KEYS)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping) or "iter" not in meta or not ({"state_dict", "module"} & content.keys()):
        raise CheckpointError(f"{path} was not written by a training run: it holds no weights with meta.iter")
    return {
        "iter": int(meta["iter"]),
        "has_optimizer": has_optimizer,
        "any_strategy": any_strategy,
        "plan": content.get("plan"),
        "record": content.get(record.KEY),
    }


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except (CheckpointError, OSError):
        return False
    return True
