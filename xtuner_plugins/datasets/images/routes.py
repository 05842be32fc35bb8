"""Two routes from an image's file to its tiles, chosen by one setting.

    route        decoding, resizing  pixels
    pillow       Pillow              equal to the published algorithm
    torchvision  torchvision         up to 1.5 % of values differ, nearly all by 1

Whatever isn't a plain upright 8-bit JPEG or PNG is decoded by Pillow on both. Every decoded image passes `check_pixels`
before it is resized.
"""

import os
from dataclasses import dataclass

import torch
from PIL import Image

from ..errors import MediaError
from .media import ORIENTATIONS, Blob, MediaSource, display_name, load_image, open_image, orientation
from .tiling import DynamicTiling, Grid, cut_tiles

ROUTES = ("pillow", "torchvision")


@dataclass(frozen=True)
class TileSource:
    """The tiles of an image.

    Attributes:
        grid: how it is cut.
        size: width and height of the image.
        tiles: uint8 `[T, 3, S, S]`; None where nothing is cut (the checker).
    """

    grid: Grid
    size: tuple[int, int]
    tiles: torch.Tensor | None = None


def open_tiles(path: MediaSource, rule: DynamicTiling, route: str, max_pixels: int) -> TileSource:
    """Open an image by a route.

    Args:
        path: of it, or its bytes.

    Raises:
        MediaError: as `media.load_image`.
    """
    pixels = None if route == "pillow" else decode_fast(path, max_pixels)
    if pixels is None:
        return from_image(load_image(path, max_pixels), rule)
    check_pixels(pixels, display_name(path))
    height, width, _ = pixels.shape
    grid = rule.grid(width, height)
    return TileSource(grid, (width, height), _cut_fast(pixels.permute(2, 0, 1), grid, rule.tile_size))


def check_pixels(pixels: torch.Tensor | Image.Image, path: str | os.PathLike = "") -> None:
    """Check that an image was decoded to uint8 `[H, W, 3]`, or to a Pillow image in mode RGB.

    Raises:
        MediaError: it wasn't.
    """
    if isinstance(pixels, Image.Image):
        found, fits = f"a Pillow image of mode {pixels.mode!r}", pixels.mode == "RGB" and min(pixels.size) > 0
    else:
        found = f"{pixels.dtype} {list(pixels.shape)}"
        fits = pixels.dtype == torch.uint8 and pixels.dim() == 3 and pixels.shape[2] == 3 and pixels.numel() > 0
    if not fits:
        raise MediaError(
            "image_mode",
            f"decoded to {found}, not to uint8 [height, width, 3]",
            "save the image as 8-bit RGB, or set route='pillow'",
            os.fspath(path),
        )


def from_image(image: Image.Image, rule: DynamicTiling) -> TileSource:
    """As `open_tiles`, for a decoded RGB image such as a video frame; tiles are cut by Pillow.

    Raises:
        MediaError: the image isn't RGB.
    """
    check_pixels(image)
    grid = rule.grid(*image.size)
    return TileSource(grid, image.size, cut_tiles(image, grid, rule.tile_size))


def gather_tiles(tiles: list[TileSource], size: int) -> dict:
    """The tiles of a sample's images together, and their number, which holds where none are cut, too."""
    ready = [tile.tiles for tile in tiles if tile.tiles is not None]
    together = torch.cat(ready) if len(ready) > 1 else ready[0] if ready else torch.empty(0, 3, size, size).byte()
    return {"tiles": together, "num_tiles": sum(tile.grid.num_tiles for tile in tiles)}


def _read_bytes(source: MediaSource) -> torch.Tensor:
    """An encoded image, uint8 `[bytes]`."""
    if isinstance(source, Blob):
        return torch.frombuffer(bytearray(source.data), dtype=torch.uint8)  # a copy: tensors are writable, bytes aren't
    from torchvision.io import read_file

    return read_file(os.fspath(source))


def decode_fast(path: MediaSource, max_pixels: int) -> torch.Tensor | None:
    """Decode a plain, upright, 8-bit JPEG or PNG with torchvision: uint8 `[H, W, 3]`; None if it isn't one.

    Both libraries decode with libjpeg-turbo to the same bytes, which a test compares. A PNG with 16 bits per channel is
    left to Pillow: it is "RGB" too, but torchvision decodes it to uint16.

    Raises:
        MediaError: as `media.open_image`.
    """
    with open_image(path, max_pixels) as header:
        plain = header.format in ("JPEG", "PNG") and header.mode in ("RGB", "L") and "transparency" not in header.info
        if not plain or orientation(header) in ORIENTATIONS:
            return None
    from torchvision.io import ImageReadMode, decode_image

    try:
        pixels = decode_image(_read_bytes(path), ImageReadMode.RGB)
    except RuntimeError:  # Pillow decodes some files that torchvision doesn't, and its errors are clearer
        return None
    return pixels.permute(1, 2, 0) if pixels.dtype == torch.uint8 else None


def _cut_fast(pixels: torch.Tensor, grid: Grid, size: int) -> torch.Tensor:
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
    import torchvision.transforms.v2.functional as transforms

    resized = transforms.resize(image, [height, width], transforms.InterpolationMode.BICUBIC, antialias=True)
    return resized.contiguous()
