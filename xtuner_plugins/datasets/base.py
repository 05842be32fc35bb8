"""What data, chat and verification need to know about a model directory: one reader, through the hub's config class.

A key that is absent from ``config.json`` means what the config class says, which is what the official class says: no
tiling (`dynamic_image_size` false), no thumbnail, 1 to 6 tiles, tiles of the encoder's `image_size`.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import SettingError, one_line
from ..hub.conversation import own_system
from ..weights.loader import read_config
from ..weights.reading import CheckpointError
from .images.tiling import DynamicTiling

if TYPE_CHECKING:
    from ..hub.configuration_internvl_chat import InternVLChatConfig

REMEDY = "build it with tools/build_base_model.py or correct 'base'"


def read_base(directory: str | os.PathLike) -> "InternVLChatConfig":
    """The config of a model directory of any format, with sizes that tiles can be cut and counted by.

    Raises:
        SettingError: no such directory, no config.json, or one without the fields of an official one.
    """
    from ..hub.configuration_internvl_chat import num_image_tokens

    if not isinstance(directory, (str, os.PathLike)):
        remedy = "give the model directory to train from, that of model.base"
        raise SettingError("base", f"base={directory!r} can't be used", remedy)
    if not os.path.isdir(directory):
        raise SettingError("base", f"model directory {directory!r} isn't there", REMEDY)
    path = os.path.join(directory, "config.json")
    try:
        config = read_config(directory)
        num_image_tokens(config)
    except CheckpointError as error:
        raise SettingError("base", str(error), REMEDY) from None
    except (ValueError, TypeError, ArithmeticError) as error:
        raise SettingError("base", f"{path!r} has sizes of no grid ({one_line(error)})", REMEDY) from None
    return config


def tiling_of(config: "InternVLChatConfig", settings: Mapping[str, Any]) -> DynamicTiling:
    """The tiling that a model was built for, except for what `min_tiles`, `max_tiles`, `use_thumbnail` of settings say.

    Raises:
        SettingError: impossible limits.
    """
    own_max = config.max_dynamic_patch if config.dynamic_image_size else 1
    min_tiles, max_tiles, thumbnail = (settings.get(key) for key in ("min_tiles", "max_tiles", "use_thumbnail"))
    max_tiles = own_max if max_tiles is None else max_tiles
    return DynamicTiling(
        min_tiles=min(config.min_dynamic_patch, own_max, max_tiles) if min_tiles is None else min_tiles,
        max_tiles=max_tiles,
        tile_size=config.force_image_size or config.vision_config.image_size,
        use_thumbnail=bool(config.use_thumbnail if thumbnail is None else thumbnail),
    )


def prompt_of(config: "InternVLChatConfig", name: str | None) -> tuple[str, dict[str, str | None]]:
    """The template `name`, or where that is None the one that the model names; and the model's own system message.

    Another template than the model's has its own system message, too.

    Raises:
        SettingError: the model names no template either.
    """
    if name not in (None, config.template):
        return name, {}
    if not config.template:
        problem = "the base's config.json names no 'template'"
        raise SettingError("template", problem, "give the dataset template='internvl2_5'")
    return config.template, own_system(vars(config))


def work_rates(config: "InternVLChatConfig") -> tuple[float, float, float]:
    """Operations of a forward pass: per token times a token of the same sample, per token, and per tile.

    So a sample's work is `rates[0] * tokens**2 + rates[1] * tokens + rates[2] * tiles`, as `planning.work` counts it.
    """
    llm, vision = config.llm_config, config.vision_config
    heads, width = llm.num_attention_heads, llm.hidden_size
    head_dim = getattr(llm, "head_dim", None) or width // heads
    inner = llm.intermediate_size
    if getattr(llm, "num_experts_per_tok", None):
        inner = llm.moe_intermediate_size * llm.num_experts_per_tok
    keys = getattr(llm, "num_key_value_heads", None) or heads
    square = 2 * heads * head_dim * llm.num_hidden_layers  # causal: half of all pairs
    token = 2 * llm.num_hidden_layers * width * (2 * (heads + keys) * head_dim + 3 * inner)
    side = (config.force_image_size or vision.image_size) // vision.patch_size
    matrices = 3 if getattr(vision, "use_gated_mlp", False) else 2  # of the feed-forward part
    weights = 4 * vision.hidden_size**2 + matrices * vision.hidden_size * vision.intermediate_size
    tile = side**2 * vision.num_hidden_layers * (2 * weights + 4 * side**2 * vision.hidden_size)
    return float(square), float(token), float(tile)
