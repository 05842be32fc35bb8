"""JPEG artifacts on training tiles, as `data_augment` of the official recipe adds them; off by default."""

from collections.abc import Sequence

import numpy as np
import torch

from ...errors import SettingError

OFFICIAL = (75, 100)  # what `data_augment` means in the official code


def check_quality(value: Sequence[int] | None) -> tuple[int, int] | None:
    """The setting `jpeg_quality`: lowest and highest quality, or None.

    Raises:
        SettingError: anything else.
    """
    if value is None:
        return None
    whole = isinstance(value, Sequence) and len(value) == 2 and all(type(each) is int for each in value)
    if not whole or not 1 <= value[0] <= value[1] <= 100:
        problem = f"jpeg_quality={value!r} can't be used"
        raise SettingError("jpeg_quality", problem, "give (lowest, highest) from 1 to 100, such as (75, 100)")
    return tuple(value)


def degrade(tiles: torch.Tensor, quality: tuple[int, int], rng: np.random.Generator) -> torch.Tensor:
    """Each tile encoded as JPEG with a random quality of this range, and decoded: uint8 `[T, 3, S, S]`."""
    from torchvision.transforms.v2.functional import jpeg

    qualities = rng.integers(quality[0], quality[1] + 1, size=len(tiles)).tolist()
    found = [jpeg(tile, each) for tile, each in zip(tiles, qualities, strict=True)]
    return torch.stack(found) if found else tiles
