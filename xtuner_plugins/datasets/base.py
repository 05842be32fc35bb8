"""What data, chat and verification need to know about a model directory: one reader, through the hub's config class.

A key that is absent from ``config.json`` means what the config class says, which is what the official class says: no
tiling (`dynamic_image_size` false), no thumbnail, 1 to 6 tiles, tiles of the encoder's `image_size`.
"""

import os
from dataclasses import dataclass

from ..checkpoints.io.reader import CheckpointError
from ..checkpoints.loader import read_config
from ..hub.modeling_internvl_chat import num_image_tokens
from .errors import SettingError
from .images.tiling import DynamicTiling

REMEDY = "build it with tools/build_base_model.py or correct 'base'"


@dataclass(frozen=True)
class BaseFacts:
    """Facts of a model directory, of any format.

    Attributes:
        directory: the model directory.
        tokens_per_tile: N, what one tile becomes in the sequence.
        tiling: the rule the model was built for.
        template: name of its conversation template.
    """

    directory: str
    tokens_per_tile: int
    tiling: DynamicTiling
    template: str

    @classmethod
    def read(
        cls,
        directory: str | os.PathLike,
        *,
        min_tiles: int | None = None,
        max_tiles: int | None = None,
        use_thumbnail: bool | None = None,
        template: str | None = None,
    ) -> "BaseFacts":
        """Read `config.json`; what is given here takes the place of what stands there.

        Raises:
            SettingError: no such directory, no config.json, or one without the fields of an official one.
        """
        directory = os.fspath(directory)
        path = os.path.join(directory, "config.json")
        if not os.path.isdir(directory):
            raise SettingError("base", f"model directory {directory!r} isn't there", REMEDY)
        try:
            config = read_config(directory)
        except CheckpointError as error:
            raise SettingError("base", str(error), REMEDY) from None
        _check_sizes(config, path)
        try:
            tokens_per_tile = num_image_tokens(config)
        except ValueError as error:
            raise SettingError("base", f"{path!r}: {error}", REMEDY) from None
        template = template or config.template
        if not template:
            raise SettingError("template", f"{path!r} names no 'template'", "give the dataset template='internvl2_5'")
        tiling = tiling_of(config, min_tiles=min_tiles, max_tiles=max_tiles, use_thumbnail=use_thumbnail)
        return cls(directory, tokens_per_tile, tiling, template)


def tiling_of(
    config, *, min_tiles: int | None = None, max_tiles: int | None = None, use_thumbnail: bool | None = None
) -> DynamicTiling:
    """The tiling that an `InternVLChatConfig` asks for, with what is given here in its place.

    Raises:
        SettingError: impossible limits.
    """
    own_max = config.max_dynamic_patch if config.dynamic_image_size else 1
    max_tiles = own_max if max_tiles is None else max_tiles
    return DynamicTiling(
        min_tiles=min(config.min_dynamic_patch, own_max, max_tiles) if min_tiles is None else min_tiles,
        max_tiles=max_tiles,
        tile_size=config.force_image_size or config.vision_config.image_size,
        use_thumbnail=bool(config.use_thumbnail if use_thumbnail is None else use_thumbnail),
    )


def _check_sizes(config, path: str) -> None:
    sizes = {
        "force_image_size": config.force_image_size or config.vision_config.image_size,
        "vision_config.patch_size": config.vision_config.patch_size,
        "downsample_ratio": config.downsample_ratio,
    }
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise SettingError("base", f"{path!r} has no usable {name} ({value!r})", REMEDY)
