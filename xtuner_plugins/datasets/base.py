"""What the data side needs to know about the model that it feeds, read from the model directory's config.json."""

import json
import os
from dataclasses import dataclass

from .errors import SettingError
from .tiling import DynamicTiling


@dataclass(frozen=True)
class BaseFacts:
    """Facts of an official-format model directory.

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
        remedy = "build it with tools/build_base_model.py or correct 'base'"
        if not os.path.isdir(directory):
            raise SettingError("base", f"model directory {directory!r} isn't there", remedy)
        try:
            with open(path, encoding="utf-8") as file:
                config = json.load(file)
        except (OSError, ValueError) as error:
            raise SettingError("base", f"{path!r} can't be read ({error})", remedy) from None
        vision = config.get("vision_config") or {}
        patch = _number(vision, "patch_size", path, "vision_config.patch_size", remedy)
        tile_size = _number(config, "force_image_size", path, "force_image_size", remedy)
        ratio = _number(config, "downsample_ratio", path, "downsample_ratio", remedy)
        dynamic = config.get("dynamic_image_size", True)
        own_max = config.get("max_dynamic_patch", 12) if dynamic else 1
        own_min = min(config.get("min_dynamic_patch", 1), own_max)
        max_tiles = own_max if max_tiles is None else max_tiles
        tiling = DynamicTiling(
            min_tiles=min(own_min, max_tiles) if min_tiles is None else min_tiles,
            max_tiles=max_tiles,
            tile_size=int(tile_size),
            use_thumbnail=bool(config.get("use_thumbnail", True) if use_thumbnail is None else use_thumbnail),
        )
        template = template or config.get("template")
        if not template:
            raise SettingError("template", f"{path!r} names no 'template'", "give the dataset template='internvl2_5'")
        tokens = int((int(tile_size) // int(patch)) ** 2 * ratio**2)
        if tokens < 1:
            raise SettingError(
                "base",
                f"{path!r}: a tile of {tile_size} px in patches of {patch} px at "
                f"downsample_ratio {ratio} gives no tokens",
                remedy,
            )
        return cls(directory, tokens, tiling, template)


def _number(config: dict, key: str, path: str, name: str, remedy: str) -> int | float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise SettingError("base", f"{path!r} has no usable {name} ({value!r})", remedy)
    return value
