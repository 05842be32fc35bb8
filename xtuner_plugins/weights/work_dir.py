"""What a training run leaves in its work directory: checkpoints, a pointer to the newest, and the config.

::

    work_dirs/finetune_lora/finetune_lora.py        the config as it ran, written by MMEngine; read by nothing here
    work_dirs/finetune_lora/iter_1000.pth           a checkpoint, a file or (DeepSpeed) a directory
    work_dirs/finetune_lora/last_checkpoint         names the newest
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError, refusing

CHECKPOINT_NAME = re.compile(r"(iter|epoch)_(\d+)\.pth")
LAST_CHECKPOINT = "last_checkpoint"
OPTIMIZER_NAMES = "optimizer_names"  # in a plain file: the parameters by their number in its optimizer state


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


@refusing
def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Facts about a checkpoint; its tensors stay on disk.

    Returns:
        ``iter``; ``has_optimizer``; ``record`` of its run, None in a checkpoint without one.

    Raises:
        CheckpointError: Missing, cut short, or not written by a training run.
    """
    if not Path(path).exists():  # said before PyTorch is imported
        raise CheckpointError(f"{path} does not exist")
    from .checkpoint import open_checkpoint

    opened = open_checkpoint(path)
    run, has_state = opened.run, "optim_states" in opened.files[-1].name
    if not isinstance(meta := run.get("meta"), Mapping) or "iter" not in meta:
        raise CheckpointError(f"{path} was not written by a training run: it holds no weights with meta.iter")
    has_optimizer = "optimizer" in run or has_state
    return {"iter": int(meta["iter"]), "has_optimizer": has_optimizer, "record": run.get("record")}
