"""What decides the answers of a model, found without reading its weights: its files, tiles and template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..datasets.base import tiling_of
from ..datasets.images.resize_rules import resize_facts
from ..files import content_hash, text_hash
from ..hub.conversation import own_system
from ..weights import manifest, preprocessing
from ..weights.loader import config_from_fields
from ..weights.model_view import open_model
from ..weights.reading import read_json, weight_files
from .batch_answers import Lengths
from .opening import Source

SUFFIXES = (".json", ".jinja", ".model", ".tiktoken", ".txt")  # config, tokenizer, template, stop tokens


@dataclass(frozen=True)
class Description:
    """A model as a session would open it.

    Attributes:
        files: All that weights, config and tokenizer are read from.
        lengths: How its images are cut and counted.
        preprocessing: The same with template and resize rule, as plain values.
    """

    files: tuple[Path, ...]
    lengths: Lengths
    preprocessing: Mapping[str, Any]

    def weights_hash(self) -> str:
        """Changes when a file does, whatever its path."""
        return text_hash(*(f"{path.name} {content_hash(path)}" for path in self.files))

    def preprocessing_hash(self) -> str:
        """Of tiles, template and resize rule."""
        return text_hash(json.dumps(dict(self.preprocessing), sort_keys=True))


def describe(source: Source, *, template: str | None = None, max_tiles: int | None = None) -> Description:
    """The description of a model directory or a checkpoint.

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
        lock = read_json(source.path / preprocessing.FILE, missing={})
    else:
        from ..export import trained

        plan = trained.lay_over(source.path, source.checkpoint).settle(template)
        view, files, lock = plan.view, plan.checkpoint.files, plan.preprocessing or {}
    config = config_from_fields(view.config, view.directory)
    lengths = Lengths(
        tiling_of(config, {"max_tiles": max_tiles}), lock.get("tile_sharing", "equal"), num_image_tokens(config)
    )
    facts = {**asdict(lengths.tiling), "tile_sharing": lengths.tile_sharing, "template": config.template}
    facts |= {**own_system(vars(config)), **resize_facts()}
    return Description((*files, *_model_files(view.directory)), lengths, facts)


def _model_files(directory: Path) -> list[Path]:
    weights = weight_files(directory)
    others = [path for path in sorted(directory.iterdir()) if path.suffix in SUFFIXES and path.name != manifest.FILE]
    return [*weights, *(path for path in others if path not in weights and ".index." not in path.name)]
