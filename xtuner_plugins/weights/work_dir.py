"""What a training run leaves in its work directory: checkpoints, a pointer to the newest, and the config.

::

    work_dirs/finetune_lora/finetune_lora.py        the config as it ran, written by MMEngine; read by nothing here
    work_dirs/finetune_lora/iter_1000.pth           a checkpoint, a file or (DeepSpeed) a directory
    work_dirs/finetune_lora/last_checkpoint         names the newest
"""

from __future__ import annotations

import contextlib
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


def newest_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a work directory: the one in ``last_checkpoint``, else by modification time."""
    pointer = Path(work_dir, LAST_CHECKPOINT)
    # Only the name counts: the work directory may have been moved.
    named = Path(pointer.read_text(encoding="utf-8", errors="replace").strip()).name if pointer.is_file() else None
    matches = [(path, CHECKPOINT_NAME.fullmatch(path.name)) for path in Path(work_dir).glob("*.pth")]
    found = [(path.name == named, path.stat().st_mtime, int(match[2]), path) for path, match in matches if match]
    for *_, path in sorted(found, reverse=True):
        with contextlib.suppress(CheckpointError, OSError):
            read_checkpoint(path)
            return path
    return None


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
    if not path.exists():  # said before PyTorch is imported
        raise CheckpointError(f"{path} does not exist")
    from .reading import load_pickle
    from .zero import checkpoint_directory, open_deepspeed

    if path.is_dir():
        folder = checkpoint_directory(path)
        if folder is None:
            raise CheckpointError(f"{path} is a directory without *_model_states.pt, so no DeepSpeed checkpoint")
        files = open_deepspeed(folder).files
        content = load_pickle(files[0])
        has_optimizer, any_strategy = any("optim_states" in file.name for file in files), True
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
