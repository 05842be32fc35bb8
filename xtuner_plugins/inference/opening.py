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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..datasets.base import tiling_of
from ..datasets.images.resize_rules import resize_facts
from ..files import content_hash, text_hash
from ..hub.conversation import own_system
from ..settings import find_config, leaves
from ..weights import manifest, preprocessing, record
from ..weights.checkpoint import open_checkpoint
from ..weights.errors import CheckpointError
from ..weights.loader import config_from_fields
from ..weights.model_view import open_config, open_model
from ..weights.reading import read_json, weight_files
from ..weights.work_dir import CHECKPOINT_NAME, newest_checkpoint
from .questions import Lengths

if TYPE_CHECKING:
    from .session import ChatSession

_READ = (".json", ".jinja", ".model", ".tiktoken", ".txt")  # config, tokenizer, template, stop tokens
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


class Description(NamedTuple):
    """What decides a model's answers: a hash of its files, how images are cut, and that with template and rules."""

    weights: str
    lengths: Lengths
    preprocessing: Mapping[str, Any]


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
    is_checkpoint = (path / record.FILE).is_file() or path.exists() and CHECKPOINT_NAME.fullmatch(path.name)
    if checkpoint is None and is_checkpoint:
        return Source(None, path)
    if (path / "config.json").is_file():
        if checkpoint is not None:
            told = f"give the training config and {checkpoint}"
            raise CheckpointError(f"{path} is a model directory, which takes no checkpoint; {told}")
        open_config(path)
        return Source(path)
    if path.is_file() and not is_config:
        told = (
            f"give the model directory (of a .gguf file its source), or for weights their config first: CONFIG {path}"
        )
        raise CheckpointError(f"{path} is a file, which holds no whole model; {told}")
    if checkpoint is not None:
        found = path / checkpoint if (path / checkpoint).exists() else Path(checkpoint)
        config = None if path.is_dir() else Path(find_config(str(model)))
        if not found.exists():
            raise CheckpointError(f"checkpoint {checkpoint} does not exist")
        return Source(config, found)
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            open_checkpoint(path)  # raises: it is one part, or another program's
        if newest := newest_checkpoint(path):
            return Source(None, newest)
        told = "a model directory (it has no config.json) nor a work directory with a whole checkpoint (iter_N.pth)"
        raise CheckpointError(f"{path} is neither {told}")
    if not is_config:
        open_config(path)  # raises: there is no such directory
    told = "give a checkpoint after it, or the run's work directory"
    raise CheckpointError(f"{find_config(str(model))} is a training config; {told}")


def describe(source: Source, *, template: str | None = None, max_tiles: int | None = None) -> Description:
    """A model directory or a checkpoint as a session would open it, without building the model.

    Args:
        source: From `find_source`.
        template: As for `open_session`.
        max_tiles: Likewise.

    Raises:
        ValueError: Parts that don't belong together, or an impossible setting.
    """
    from ..hub.configuration_internvl_chat import num_image_tokens

    if source.checkpoint is None:
        view, files = open_model(source.path), []
    else:
        from ..export import trained

        plan = trained.lay_over(source.path, source.checkpoint).settle(template)
        view, files = plan.view, plan.checkpoint.files
    config, weights = config_from_fields(view.config, view.directory), weight_files(view.directory)
    others = [path for path in sorted(view.directory.iterdir()) if path.suffix in _READ and path.name != manifest.FILE]
    files = [*files, *weights, *(path for path in others if path not in weights and ".index." not in path.name)]
    tiling = tiling_of(config, {"max_tiles": max_tiles})
    facts = {**asdict(tiling), "template": config.template, **own_system(vars(config)), **resize_facts()}
    hashed = text_hash(*(f"{path.name} {content_hash(path)}" for path in files))
    return Description(hashed, Lengths(tiling, num_image_tokens(config)), facts)


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

    Nothing in a model directory is executed: the code is this project's own.

    Args:
        model: As for `find_source`; see the top of this file.
        checkpoint: MMEngine ``.pth``, DeepSpeed directory or exported adapter, for a config or a work directory.
        device: ``'auto'`` (CUDA if available), or a torch device.
        dtype: ``'auto'`` (bfloat16 on CUDA, float16 on GPUs without it, float32 on the CPU), or a name.
        template: Conversation template, for a checkpoint that was trained with several.
        **limits: ``min_tiles``, ``max_tiles`` and ``use_thumbnail`` of the session.

    Raises:
        ValueError: Nothing that can be opened, parts that don't belong together, or an impossible setting.
    """
    source = find_source(model, checkpoint)
    from ..dtypes import resolve_dtype
    from ..weights.loader import load_model, load_tokenizer
    from .session import ChatSession, resolve_device

    on = resolve_device(device)
    options = {"dtype": resolve_dtype(dtype, on), "device": on}
    if source.checkpoint is None:
        if template is not None:
            raise CheckpointError(f"{source} has one template of its own; a template is chosen for checkpoints only")
        network, tokenizer, lock = load_model(source.path, **options), load_tokenizer(source.path), None
        if (path := source.path / preprocessing.FILE).is_file():
            lock = preprocessing.checked(read_json(path), tokenizer, str(path))
        return ChatSession(network, tokenizer, lock=lock, **limits)
    from ..export import trained

    plan = trained.lay_over(source.path, source.checkpoint).settle(template)
    for note in plan.notes:
        _logger.warning(note)
    network, tokenizer = trained.build_trained(plan, **options), load_tokenizer(plan.view.directory)
    return ChatSession(network, tokenizer, lock=plan.preprocessing, **limits)
