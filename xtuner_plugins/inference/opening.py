"""Opens a model to answer with: a model directory, or what a training run left, without an export.

============================  =============================================================================
given                         opened
============================  =============================================================================
``DIR``                       an export or a base in the official format, or in ``hf`` (transformers' own InternVL)
``CHECKPOINT``                its record's base with the checkpoint laid over it, adapters merged in fp32; settings,
                              tile limits and template are the training's, as in an export. An adapter directory that
                              `export_adapter` has written is opened likewise
``WORK_DIR``                  the run's newest whole checkpoint
``WORK_DIR CHECKPOINT``       a checkpoint of one's own choice (a path, or a name in WORK_DIR)
``CONFIG CHECKPOINT``         the same where the config says that the base is elsewhere now. A config is a Python file,
                              and reading it runs it; nothing else is run, and none is looked for in a work directory
============================  =============================================================================

Anything else is refused, with the way out. `find_source` tells which it is without importing transformers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import find_config, leaves
from ..weights import record
from ..weights.checkpoint import open_checkpoint
from ..weights.errors import CheckpointError
from ..weights.model_view import open_config
from ..weights.work_dir import CHECKPOINT_NAME, newest_checkpoint

if TYPE_CHECKING:
    from .session import ChatSession

_ALONE = "holds weights alone; give its training config first: CONFIG {}"
_FILES = {  # that hold no model, by suffix
    **dict.fromkeys((".pth", ".pt", ".bin", ".safetensors"), _ALONE),
    ".gguf": "is for llama.cpp; give the directory that it was converted from",
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a model is read from.

    Attributes:
        path: A model directory, or the training config that was named before the checkpoint; None where none was.
        checkpoint: A training checkpoint; None for a model directory.
    """

    path: Path | None
    checkpoint: Path | None = None

    def __str__(self) -> str:
        return str(self.path if self.checkpoint is None else self.checkpoint)


def find_source(model: str | Path, checkpoint: str | Path | None = None) -> Source:
    """What the words of a command line mean; checks that it is there, and reads no weights.

    Args:
        model: A model directory, a checkpoint, a work directory, or a training config (path, or name in configs/).
        checkpoint: A training checkpoint, for a config or a work directory.

    Raises:
        CheckpointError: Nothing that can be opened; the message says what it is and what to give instead.
        ConfigError: No such config.
    """
    path = Path(model)
    is_config = path.suffix == ".py" or str(path) in leaves()
    if checkpoint is None and (
        (path / record.FILE).is_file() or path.exists() and CHECKPOINT_NAME.fullmatch(path.name)
    ):
        return Source(None, path)
    if (path / "config.json").is_file():
        if checkpoint is not None:
            raise CheckpointError(
                f"{path} is a model directory, which takes no checkpoint; give the training config and {checkpoint}"
            )
        open_config(path)
        return Source(path)
    if path.is_dir():
        return Source(None, _in_work_dir(path, checkpoint))
    if path.is_file() and not is_config:
        said = _FILES.get(path.suffix, "is a file, not a model directory, a training config or a work directory")
        raise CheckpointError(f"{path} {said.format(path)}")
    if checkpoint is None and not is_config:
        open_config(path)  # raises: there is no such directory
    config = Path(find_config(str(model)))
    if checkpoint is None:
        raise CheckpointError(f"{config} is a training config; give a checkpoint after it, or the run's work directory")
    return Source(config, _existing(checkpoint))


def _in_work_dir(path: Path, checkpoint: str | Path | None) -> Path:
    """The newest checkpoint of a work directory, or the one that is named."""
    if checkpoint is not None:
        return path / checkpoint if (path / checkpoint).exists() else _existing(checkpoint)
    if (path / "adapter_config.json").is_file():
        open_checkpoint(path)  # raises: it is one part, or another program's
    newest = newest_checkpoint(path)
    if newest is None:
        raise CheckpointError(
            f"{path} is neither a model directory (it has no config.json) nor a work directory with a whole checkpoint "
            "(iter_N.pth)"
        )
    return newest


def _existing(checkpoint: str | Path) -> Path:
    if not Path(checkpoint).exists():
        raise CheckpointError(f"checkpoint {checkpoint} does not exist")
    return Path(checkpoint)


def open_session(
    model: str | Path,
    checkpoint: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    template: str | None = None,
    **limits: Any,
) -> ChatSession:
    """A session over a model directory, or over a training checkpoint as its export would answer.

    Args:
        model: As for `find_source`; see the top of this file.
        checkpoint: MMEngine ``.pth``, DeepSpeed directory or exported adapter, for a config or a work directory.
        device: As for `ChatSession.from_pretrained`.
        dtype: Likewise.
        template: Conversation template, for a checkpoint that was trained with several.
        **limits: ``min_tiles``, ``max_tiles``, ``use_thumbnail`` and ``tile_sharing`` of the session.

    Raises:
        ValueError: Nothing that can be opened, parts that don't belong together, or an impossible setting.
    """
    source = find_source(model, checkpoint)
    from .session import ChatSession, resolve_device

    if source.checkpoint is None:
        if template is not None:
            raise CheckpointError(f"{source} has one template of its own; a template is chosen for checkpoints only")
        return ChatSession.from_pretrained(source.path, device=device, dtype=dtype, **limits)
    from ..dtypes import resolve_dtype
    from ..export import trained
    from ..weights.loader import load_tokenizer

    on = resolve_device(device)
    plan = trained.lay_over(source.path, source.checkpoint).settle(template)
    for note in plan.notes:
        _logger.warning(note)
    model = trained.build_trained(plan, dtype=resolve_dtype(dtype, on), device=on)
    return ChatSession(model, load_tokenizer(plan.view.directory), lock=plan.preprocessing, **limits)
