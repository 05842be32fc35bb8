"""The preprocessing of a data set, as `preprocessing` locks it into checkpoints."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

from ..hub.constants import ADDED_TOKENS
from ..hub.conversation import Conversation
from ..weights.preprocessing import TOKEN_RULES, Choice
from .images.resize_rules import resize_facts
from .images.tiling import DynamicTiling

if TYPE_CHECKING:
    from .dataset import MultimodalDataset


def describe(dataset: "MultimodalDataset", image_mean: Sequence[float], image_std: Sequence[float]) -> dict:
    """The preprocessing of a training dataset, and mean and std per channel of the model's, as plain values."""
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


def _settings(tiling: DynamicTiling, conversation: Conversation) -> dict:
    limits = tiling.min_tiles, tiling.max_tiles, tiling.use_thumbnail
    return asdict(Choice(*limits, conversation.name, conversation.system_message))


def _rounded(values: Sequence[float]) -> list[float]:
    """Numbers as they were written before conversion to float32."""
    return [round(float(value), 6) for value in values]
