"""Four routes from an image's file to its tiles, chosen by one setting.

    route        the worker                      the device              pixels
    pillow       decodes, resizes, cuts          -                       equal to the published algorithm
    torchvision  decodes, resizes, cuts faster   -                       up to 1.5 % of values differ, nearly all by 1
    device       decodes                         resizes, cuts           equal to the published algorithm
    nvjpeg       reads the file                  decodes, resizes, cuts  as nvJPEG decodes; equal on a CPU

Whatever isn't a plain upright 8-bit JPEG or PNG is decoded by Pillow on every route. Every decoded image passes
`check_pixels` before it is resized or leaves the worker.

`device` sends a whole image where it has no more bytes than its tiles, and a larger one while smaller ones before it
have saved those bytes (`Allowance`), so that no more bytes are sent in all than on the other routes. Other images are
sent as the planes that a 4:2:0 JPEG stores: half the bytes, for half as much decoding time again. Where planes would
still be many times the bytes of the tiles (`PLANES_LIMIT`), or there are none, Pillow cuts the tiles. A page scanned at
2480x3508 takes 20 ms to decode, 30 ms to decode into planes and 160 ms to resize.

`nvjpeg` sends the bytes of upright JPEGs as they are in the file (see `models.device_decode`); any other image takes
the route `device`.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from ..errors import MediaError
from .media import ORIENTATIONS, Blob, MediaSource, display_name, load_image, open_image, orientation
from .tiling import DynamicTiling, Grid, UncutImage, cut_tiles

FOUR_TWO_ZERO = 2  # Pillow's number for this subsampling
ON_DEVICE = ("device", "nvjpeg")  # routes on which the model's device cuts the tiles
ROUTES = ("pillow", "torchvision", *ON_DEVICE)
JPEG_END = b"\xff\xd9"
TRAILER = 64  # most bytes that may follow the end of an image which is sent encoded
PLANES_LIMIT = 4  # send planes up to this many times the bytes of the image's tiles


@dataclass(frozen=True)
class TileSource:
    """The tiles of an image, or the image that the device will cut.

    Attributes:
        grid: how it is or will be cut.
        size: width and height of the image.
        tiles: uint8 `[T, 3, S, S]`, or None.
        image: uint8 `[H, W, 3]`, its planes `[3 H' / 2, W']` (see `models.device_color`), its file's bytes, or None.
    """

    grid: Grid
    size: tuple[int, int]
    tiles: torch.Tensor | None = None
    image: torch.Tensor | None = None


class Allowance:
    """Bytes that a worker may send beyond those of the tiles: what earlier images have saved, up to `MOST`.

    Threads that count at the same time may lose some; pixels don't depend on it.
    """

    MOST = 1 << 26

    def __init__(self):
        self.left = 0

    def allows(self, more: int) -> bool:
        """Whether an image may have `more` bytes than its tiles."""
        return more <= max(self.left, 0)

    def count(self, more: int) -> None:
        """Count an image with `more` bytes than its tiles (fewer where negative)."""
        self.left = max(-self.MOST, min(self.MOST, self.left - more))


def open_tiles(
    path: MediaSource, rule: DynamicTiling, route: str, max_pixels: int, allowance: Allowance | None = None
) -> TileSource:
    """Open an image by a route.

    Args:
        path: of it, or its bytes.
        allowance: for the routes of `ON_DEVICE`; None allows no whole image that is larger than its tiles.

    Raises:
        MediaError: as `media.load_image`.
    """
    allowance = allowance or Allowance()
    if route == "nvjpeg" and (source := _open_encoded(path, rule, max_pixels)) is not None:
        return source
    if route in ON_DEVICE and (source := _open_planes(path, rule, max_pixels, allowance)) is not None:
        return source
    pixels = None if route == "pillow" else decode_fast(path, max_pixels)
    if pixels is None:
        return from_image(load_image(path, max_pixels), rule, route, allowance)
    check_pixels(pixels, display_name(path))
    if route in ON_DEVICE:
        return _whole_or_tiles(pixels, rule, allowance)
    height, width, _ = pixels.shape
    grid = rule.grid(width, height)
    return TileSource(grid, (width, height), tiles=_cut_fast(pixels.permute(2, 0, 1), grid, rule.tile_size))


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


def from_image(image: Image.Image, rule: DynamicTiling, route: str, allowance: Allowance | None = None) -> TileSource:
    """As `open_tiles`, for a decoded RGB image such as a video frame; tiles are cut by Pillow.

    Raises:
        MediaError: the image isn't RGB.
    """
    check_pixels(image)
    if route in ON_DEVICE:
        return _whole_or_tiles(torch.from_numpy(np.array(image)), rule, allowance or Allowance())
    grid = rule.grid(*image.size)
    return TileSource(grid, image.size, tiles=cut_tiles(image, grid, rule.tile_size))


def _whole_or_tiles(pixels: torch.Tensor, rule: DynamicTiling, allowance: Allowance) -> TileSource:
    """The whole image, uint8 `[H, W, 3]`, or its tiles where it is too large."""
    height, width, _ = pixels.shape
    grid = rule.grid(width, height)
    more = 3 * width * height - _tile_bytes(grid, rule)
    if not allowance.allows(more):
        return TileSource(grid, (width, height), tiles=cut_tiles(Image.fromarray(pixels.numpy()), grid, rule.tile_size))
    allowance.count(more)
    return TileSource(grid, (width, height), image=pixels.contiguous())


def gather_tiles(tiles: list[TileSource], size: int, route: str) -> dict:
    """The tiles of a sample, and the images that the device will cut."""
    ready = [tile.tiles for tile in tiles if tile.tiles is not None]
    firsts = np.cumsum([0] + [tile.grid.num_tiles for tile in tiles]).tolist()  # and the end of the last
    together = torch.cat(ready) if len(ready) > 1 else ready[0] if ready else torch.empty(0, 3, size, size).byte()
    out = {"tiles": together, "num_tiles": firsts[-1]}
    if route in ON_DEVICE:
        uncut = [(tile, first) for tile, first in zip(tiles, firsts, strict=False) if tile.image is not None]
        out["images"] = [tile.image for tile, _ in uncut]
        out["uncut"] = [UncutImage(tile.grid, first, *tile.size) for tile, first in uncut]
    return out


def decode_planes(image: Image.Image, source: MediaSource | None = None) -> torch.Tensor | None:
    """The planes of a plain, upright 4:2:0 JPEG: uint8 `[3 H' / 2, W']` (see `models.device_color`).

    Decoding a JPEG as gray gives its brightness; at half the size libjpeg decodes color as it is stored, not scaled.

    Args:
        image: the image, opened and not yet loaded.
        source: what it was opened from; default: its file.

    Returns:
        The planes; None for any other image, and for one that can't be decoded (other decoders give better errors).
    """
    narrow = min(image.size) <= 4  # libjpeg scales these differently
    if not _is_upright_ycc(image) or get_sampling(image) != FOUR_TWO_ZERO or narrow:
        return None
    from torchvision.io import ImageReadMode, decode_image

    width, height = image.size
    columns, rows = -(-width // 2), -(-height // 2)
    try:
        luma = decode_image(_read_bytes(source or image.filename), ImageReadMode.GRAY)
        image.draft("YCbCr", (width // 2, height // 2))
        image.load()
    except (OSError, RuntimeError, SyntaxError, ValueError):  # Pillow's and torchvision's, for damaged files
        return None
    if image.mode != "YCbCr" or image.size != (columns, rows):
        return None
    if luma.shape != (1, height, width) or luma.dtype != torch.uint8:
        return None
    planes = torch.zeros(3 * rows, 2 * columns, dtype=torch.uint8)
    planes[:height, :width] = luma[0]
    chroma = np.asarray(image)
    planes[2 * rows :].numpy().reshape(rows, 2, columns)[:] = chroma[..., 1:].transpose(0, 2, 1)
    return planes


def _is_upright_ycc(image: Image.Image) -> bool:
    """Whether an opened image is a JPEG whose header says that its colors are YCbCr, and not to be turned."""
    return (
        image.format == "JPEG"
        and image.mode == "RGB"
        and ("jfif" in image.info or image.info.get("adobe_transform") == 1)
        and orientation(image) not in ORIENTATIONS
    )


def _open_encoded(path: MediaSource, rule: DynamicTiling, max_pixels: int) -> TileSource | None:
    """An upright JPEG as its bytes; None for any other image, and for one that is cut off or larger than its tiles."""
    with open_image(path, max_pixels) as image:
        size = image.size
        if not _is_upright_ycc(image):
            return None
    encoded, grid = _read_bytes(path), rule.grid(*size)
    if len(encoded) > _tile_bytes(grid, rule) or JPEG_END not in encoded[-TRAILER:].numpy().tobytes():
        return None
    return TileSource(grid, size, image=encoded)


def _read_bytes(source: MediaSource) -> torch.Tensor:
    """An encoded image, uint8 `[bytes]`."""
    if isinstance(source, Blob):
        return torch.frombuffer(bytearray(source.data), dtype=torch.uint8)  # a copy: tensors are writable, bytes aren't
    from torchvision.io import read_file

    return read_file(os.fspath(source))


def _open_planes(path: MediaSource, rule: DynamicTiling, max_pixels: int, allowance: Allowance) -> TileSource | None:
    """An image as planes; None where it can be sent whole, has no planes, or they are too large."""
    with open_image(path, max_pixels) as image:
        (width, height), grid = image.size, rule.grid(*image.size)
        own = _tile_bytes(grid, rule)
        if allowance.allows(3 * width * height - own) or 3 * width * height > 2 * PLANES_LIMIT * own:
            return None
        planes = decode_planes(image, path)
    if planes is None:
        return None
    allowance.count(planes.numel() - own)
    return TileSource(grid, (width, height), image=planes)


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


def _tile_bytes(grid: Grid, rule: DynamicTiling) -> int:
    return 3 * grid.num_tiles * rule.tile_size**2


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
