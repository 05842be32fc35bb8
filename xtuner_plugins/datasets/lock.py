"""The preprocessing of a data set, as `preprocessing` locks it into checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ..hub.constants import ADDED_TOKENS
from ..hub.conversation import Conversation
from ..weights.preprocessing import SETTINGS, TOKEN_RULES, Choice
from .base import prompt_of, read_base, tiling_of
from .images.resize_rules import resize_facts
from .images.tiling import DynamicTiling
from .meta_file import OTHERS, expand_metas
from .records.opening import stem_of
from .text.templates import get_template

if TYPE_CHECKING:
    from .dataset import MultimodalDataset


def describe(dataset: "MultimodalDataset", image_mean: Sequence[float], image_std: Sequence[float]) -> dict:
    """The preprocessing of a live `MultimodalDataset` as plain values.

    Args:
        dataset: the training dataset.
        image_mean, image_std: per channel, in the model's data preprocessor.
    """
    budget, vocabulary = dataset.budget, dataset.tokenizer
    return {
        "tile_size": dataset.tile_size,
        "tokens_per_tile": budget.tokens_per_tile,
        "datasets": [
            {"name": source.name, **_settings(source.tiling, source.template.conversation)}
            for source in dataset.sources
        ],
        "token_rules": TOKEN_RULES,
        "tile_sharing": "equal",
        "max_length": budget.max_length,
        "num_frames": dataset.num_frames,
        "fast_decoding": dataset.fast_decoding,
        "image_mean": _rounded(image_mean),
        "image_std": _rounded(image_std),
        "special_tokens": {token: vocabulary.ids[token] for token in ADDED_TOKENS if token in vocabulary.ids},
        **resize_facts(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "pillow")},
    }


def from_config(cfg: Mapping) -> dict | None:
    """``tile_size`` and ``datasets`` of a training config, without opening its data.

    Returns:
        The two, or None if the config has no dataset of ours.
    """
    dataset = (cfg.get("train_dataloader") or {}).get("dataset") or {}
    paths = dataset.get("data_paths")
    if not paths or "base" not in dataset:
        return None
    paths, _, _, own = expand_metas(paths, *(dataset.get(name) for name in OTHERS))
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    own = list(own) if isinstance(own, (list, tuple)) else [own] * len(paths)
    shared, config = {key: dataset.get(key) for key in SETTINGS}, read_base(dataset["base"])
    described = []
    for path, settings in zip(paths, own, strict=False):
        settings = shared | {key: value for key, value in (settings or {}).items() if value is not None}
        conversation = get_template(*prompt_of(config, settings["template"])).conversation
        rule = _settings(tiling_of(config, settings), conversation)
        described.append({"name": settings.get("name") or stem_of(path), **rule})
    return {"tile_size": tiling_of(config, {}).tile_size, "datasets": described}


def _settings(tiling: DynamicTiling, conversation: Conversation) -> dict:
    limits = tiling.min_tiles, tiling.max_tiles, tiling.use_thumbnail
    return asdict(Choice(*limits, conversation.name, conversation.system_message))


def _rounded(values: Sequence[float]) -> list[float]:
    """Numbers as they were written before conversion to float32."""
    return [round(float(value), 6) for value in values]
