"""From an image's file to its tiles, exactly or fast, as the setting `fast_decoding` says.

| value | decoding and resizing | pixels |
|---|---|---|
| False | Pillow | equal to the published algorithm |
| True | torchvision decodes plain JPEG, kornia-rs plain PNG; resized as uint8 | few are one level off, rarely two |
| "auto" | as True, but as False where that is as fast: nothing to resize, or a processor without AVX2 | as either |

Training tiles may get JPEG artifacts, as `data_augment` of the official recipe adds them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...errors import SettingError
from .media import SWAPS_SIDES, Blob, MediaSource, load_image, open_image, orientation, upright_size
from .tiling import DynamicTiling, Grid

FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}  # EXIF orientation -> axes, once sides are swapped
LANES = 4  # channels that the kernel resizes in the time of one
OFFICIAL_QUALITY = (75, 100)  # what `data_augment` means in the official code


def open_tiles(source: MediaSource, rule: DynamicTiling, fast: bool | str = False) -> torch.Tensor:
    """The tiles of an image, uint8 `[T, 3, S, S]`, thumbnail last.

    Args:
        fast: one of `ranges.DECODING`.

    Raises:
        MediaError: as `media.load_image`.
    """
    if not fast:
        return rule(load_image(source))
    with open_image(source) as image:
        turn, size = orientation(image), upright_size(image)
        is_plain = image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and "transparency" not in image.info
    grid = rule.grid(*size)
    if fast == "auto" and (size == (rule.tile_size,) * 2 or not torch.backends.cpu.get_cpu_capability()[:3] == "AVX"):
        return rule(load_image(source))
    pixels = decode_plain(source, image) if is_plain else None
    if pixels is None:
        pixels, turn = torch.from_numpy(np.array(load_image(source))).permute(2, 0, 1), 1
    return _cut(pixels, turn, grid, rule.tile_size)


def decode_plain(source: MediaSource, header: Image.Image) -> torch.Tensor | None:
    """A JPEG or PNG of `header`, not turned, with Pillow's pixels: uint8 `[1 or 3, H, W]`; None where Pillow has to.

    Pillow decodes some files that these libraries don't, and its errors are clearer. Of a PNG with 16 bits per channel
    it says "RGB", too.
    """
    data = source.data if isinstance(source, Blob) else Path(source).read_bytes()
    if header.format == "PNG":
        from kornia_rs.io import decode_image_png_u8

        mode = {"RGB": "rgb", "L": "mono"}[header.mode]
        try:
            return torch.from_numpy(decode_image_png_u8(data, header.size[::-1], mode)).permute(2, 0, 1)
        except Exception:  # the only type that it raises
            return None
    from torchvision.io import ImageReadMode, decode_image

    try:
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    except RuntimeError:
        return None


def _cut(pixels: torch.Tensor, turn: int, grid: Grid, size: int) -> torch.Tensor:
    columns, rows, thumbnail = grid
    out = torch.empty(grid.num_tiles, 3, size, size, dtype=torch.uint8)
    resize = partial(_resize_upright, pixels, turn)
    if len(pixels) == 1 and turn not in SWAPS_SIDES and size % LANES == 0:
        resize = partial(_resize_gray, _in_lanes(pixels), pixels.shape[1])

    def upright(height: int, width: int) -> torch.Tensor:
        small = resize(height, width)
        return small.flip(FLIPS[turn]) if turn in FLIPS else small

    out[: columns * rows].view(rows, columns, 3, size, size).copy_(
        upright(rows * size, columns * size).reshape(-1, rows, size, columns, size).permute(1, 3, 0, 2, 4)
    )
    if thumbnail:
        out[-1] = upright(size, size)
    return out


def _resize_upright(pixels: torch.Tensor, turn: int, height: int, width: int) -> torch.Tensor:
    """The image of this size, its sides as those of the upright one; flips come after it has become small."""
    if turn in SWAPS_SIDES:  # the pass that Pillow runs first, over the upright image's rows, is over columns here
        return _resize(_resize(pixels, width, pixels.shape[2]), width, height).transpose(1, 2)
    return _resize(pixels, height, width)


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 `[C, H, W]` in fixed point with antialiasing."""
    import torchvision.transforms.v2.functional as transforms

    return transforms.resize(pixels, [height, width], transforms.InterpolationMode.BICUBIC, antialias=True)


def _in_lanes(pixels: torch.Tensor) -> torch.Tensor:
    """Quarters of a gray image's rows as channels, which lie side by side in memory: `[LANES, H / LANES, W]`."""
    rows = torch.nn.functional.pad(pixels, (0, 0, 0, -pixels.shape[1] % LANES)).view(LANES, -1, pixels.shape[2])
    return torch.stack(rows.unbind(), -1).permute(2, 0, 1)


def _resize_gray(lanes: torch.Tensor, old: int, height: int, width: int) -> torch.Tensor:
    """As `_resize` of one channel with `old` rows, in half the time; then quarters of its columns are channels."""
    rows = _resize(lanes, lanes.shape[1], width).reshape(-1, width)[:old]
    found = _resize(rows.view(old, -1, LANES).permute(2, 0, 1), height, width // LANES)
    return found.permute(1, 2, 0).reshape(1, height, width)


def check_quality(value: Sequence[int] | None) -> tuple[int, int] | None:
    """The setting `jpeg_quality`: lowest and highest quality, or None; `SettingError` for anything else."""
    if value is None:
        return None
    is_pair = isinstance(value, Sequence) and [type(each) for each in value] == [int, int]
    if not is_pair or not 1 <= value[0] <= value[1] <= 100:
        problem = f"jpeg_quality={value!r} can't be used"
        raise SettingError("jpeg_quality", problem, "give (lowest, highest) from 1 to 100, such as (75, 100)")
    return tuple(value)


def degrade(tiles: torch.Tensor, quality: tuple[int, int], rng: np.random.Generator) -> torch.Tensor:
    """Each tile encoded as JPEG with a random quality of this range, and decoded: uint8 `[T, 3, S, S]`."""
    from torchvision.transforms.v2.functional import jpeg

    qualities = rng.integers(quality[0], quality[1] + 1, size=len(tiles)).tolist()
    found = [jpeg(tile, each) for tile, each in zip(tiles, qualities, strict=True)]
    return torch.stack(found) if found else tiles
