"""Three routes from a picture's file to its tiles, chosen by one setting.

    route        the worker                         the device      pixels
    pillow       decodes, resizes, cuts             -               equal to the published algorithm
    torchvision  decodes, resizes, cuts (faster)    -               up to 1.5 % of values differ, nearly all by 1
    device       decodes                            resizes, cuts   equal to the published algorithm

What isn't a plain upright 8-bit JPEG or PNG is decoded by Pillow on every route. `device` hands the picture over
whole unless that were many times the bytes of its tiles (`WHOLE_LIMIT`); then its tiles, cut by Pillow.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as transforms
from PIL import Image
from torchvision.io import ImageReadMode, decode_image, read_file

from .errors import SettingError
from .media import ORIENTATIONS, load_image, open_image, orientation
from .tiling import DynamicTiling

ROUTES = ("pillow", "torchvision", "device")
WHOLE_LIMIT = 8  # hand a picture over whole up to this many times the bytes of its tiles


@dataclass(frozen=True)
class TileSource:
    """A picture's tiles, or the picture that they are still to be cut from.

    Attributes:
        tiles: uint8 `[T, 3, S, S]`, or None.
        picture: uint8 `[H, W, 3]`, or None.
        grid: columns, rows, thumbnail (0 or 1).
    """

    grid: tuple[int, int, int]
    tiles: torch.Tensor | None = None
    picture: torch.Tensor | None = None

    @property
    def num_tiles(self) -> int:
        return self.grid[0] * self.grid[1] + self.grid[2]


def check_route(route: str) -> str:
    """`route` itself.

    Raises:
        SettingError: no such route.
    """
    if route not in ROUTES:
        raise SettingError("route", f"route={route!r} is unknown", f"routes are {', '.join(ROUTES)}")
    return route


def open_tiles(path: str | os.PathLike, rule: DynamicTiling, route: str, max_pixels: int) -> TileSource:
    """Open a picture and take it along a route.

    Raises:
        MediaError: as `media.load_image`.
    """
    pixels = None if route == "pillow" else decode_fast(path, max_pixels)
    if pixels is None:
        return from_image(load_image(path, max_pixels), rule, route)
    height, width = pixels.shape[1:]
    grid = _grid(rule, width, height)
    if route == "device" and _hand_over_whole(width, height, grid, rule):
        return TileSource(grid, picture=pixels.permute(1, 2, 0).contiguous())
    if route == "device":
        return from_image(Image.fromarray(pixels.permute(1, 2, 0).numpy()), rule, route)
    return TileSource(grid, tiles=_cut_fast(pixels, grid, rule.tile_size))


def from_image(image: Image.Image, rule: DynamicTiling, route: str) -> TileSource:
    """Take an RGB picture along a route (a video's frame, say); tiles, if any, are Pillow's."""
    grid = _grid(rule, *image.size)
    if route == "device" and _hand_over_whole(*image.size, grid, rule):
        return TileSource(grid, picture=torch.from_numpy(np.array(image)))
    return TileSource(grid, tiles=rule(image))


def decode_fast(path: str | os.PathLike, max_pixels: int) -> torch.Tensor | None:
    """Decode a plain, upright, 8-bit JPEG or PNG with torchvision: uint8 `[3, H, W]`; None if it isn't one.

    Both libraries decode with libjpeg-turbo, to the same bytes; a test compares them.

    Raises:
        MediaError: as `media.open_image`.
    """
    with open_image(path, max_pixels) as header:
        plain = header.format in ("JPEG", "PNG") and header.mode in ("RGB", "L") and "transparency" not in header.info
        if not plain or orientation(header) in ORIENTATIONS:
            return None
    try:
        return decode_image(read_file(os.fspath(path)), ImageReadMode.RGB)
    except RuntimeError:  # Pillow decodes some files that torchvision doesn't, and says better what is wrong
        return None


def _grid(rule: DynamicTiling, width: int, height: int) -> tuple[int, int, int]:
    cols, rows = rule.grid(width, height)
    return cols, rows, int(rule.use_thumbnail and cols * rows > 1)


def _hand_over_whole(width: int, height: int, grid: tuple[int, int, int], rule: DynamicTiling) -> bool:
    """Whole pictures save the worker the resize, at the price of more bytes for those that shrink (a page scanned
    at 2480x3508 has six times the pixels of its seven tiles, and takes 160 ms to resize, 25 to decode)."""
    return width * height <= WHOLE_LIMIT * (grid[0] * grid[1] + grid[2]) * rule.tile_size**2


def _cut_fast(pixels: torch.Tensor, grid: tuple[int, int, int], size: int) -> torch.Tensor:
    cols, rows, thumbnail = grid
    out = torch.empty(cols * rows + thumbnail, 3, size, size, dtype=torch.uint8)
    resized = _resize_uint8(pixels, rows * size, cols * size)
    out[: cols * rows].view(rows, cols, 3, size, size).copy_(
        resized.view(3, rows, size, cols, size).permute(1, 3, 0, 2, 4)
    )
    if thumbnail:
        out[-1] = _resize_uint8(pixels, size, size)
    return out


def _resize_uint8(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 `[3, H, W]` resized in fixed point with antialiasing, contiguous."""
    resized = transforms.resize(image, [height, width], transforms.InterpolationMode.BICUBIC, antialias=True)
    return resized.contiguous()
