"""Pillow's bicubic resize on any device, bit-identical, so that workers only have to decode.

Pillow resizes 8-bit images in two passes, one per axis. Each pass sums pixels (0 to 255) times fixed-point coefficients
with 22 fractional bits, rounds, shifts back and clips to a byte: an exact integer product of the image with a banded
matrix. Here it is computed as two (rarely three) float32 matrix products: each coefficient is split into signed digits
of 11 bits, so that every partial sum stays below 2^24, where float32 still holds every integer.

    image [H, W] --(coefficients [w, W])--> [H, w] bytes --(coefficients [h, H])--> [h, w] bytes

The order of the passes matters, because pixels are rounded to bytes between them: see `datasets.images.resize_rules`.
"""

import contextlib
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from ..datasets.images.resize_rules import resize_rule
from ..datasets.images.tiling import UncutImage
from .device_color import planes_to_rgb
from .device_decode import decode_each

PRECISION_BITS = 22  # 32 - 8 - 2, as in Pillow's 8-bit resampling
DIGIT_BITS = 11
EXACT = 1 << 24  # float32 holds every integer up to here
SUPPORT = 2.0  # of the bicubic filter, in source pixels when enlarging


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5 (IEEE ASSP 29(6), 1981)."""
    x, a = np.abs(x), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@lru_cache(maxsize=512)
def fixed_point_weights(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's coefficients for one axis.

    Returns:
        first: int64 `[size_out]`, the first source pixel of each output pixel.
        weights: int64 `[size_out, taps]`, 22 fractional bits, zero beyond the image's end.
    """
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centers = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((centers - SUPPORT * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + SUPPORT * stretch + 0.5).astype(np.int64), size_in)
    taps = np.arange(int((last - first).max()))
    positions = first[:, None] + taps
    weights = _bicubic((positions - centers[:, None] + 0.5) * (1.0 / stretch))
    weights[positions >= last[:, None]] = 0.0
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # summed one by one, as Pillow does, to the last bit
    return first, np.trunc(weights * (1 << PRECISION_BITS) + np.copysign(0.5, weights)).astype(np.int64)


@lru_cache(maxsize=256)
def _digit_matrices(size_in: int, size_out: int, start: int, stop: int) -> tuple[int, int, int, tuple[np.ndarray, ...]]:
    """Rows start:stop of the coefficient matrix of an axis, as digits.

    Returns:
        first, last: Range of source pixels that these rows use.
        bits: Bits per digit.
        digits: float32 matrices `[stop - start, last - first]`, least significant first; their sums of digit times
            byte are below 2^24 in any order of summation.
    """
    begins, weights = fixed_point_weights(size_in, size_out)
    begins, weights = begins[start:stop], weights[start:stop]
    first = int(begins.min())
    last = min(int(begins.max()) + weights.shape[1], size_in)
    dense = np.zeros((stop - start, last - first + weights.shape[1]), np.int64)
    np.put_along_axis(dense, begins[:, None] - first + np.arange(weights.shape[1]), weights, axis=1)
    dense = dense[:, : last - first]
    for bits in range(DIGIT_BITS, 3, -1):
        digits, rest = [], dense
        while rest.any() or not digits:
            low = ((rest + (1 << bits - 1)) & ((1 << bits) - 1)) - (1 << bits - 1)  # signed, -2^(b-1) to 2^(b-1) - 1
            digits.append(low)
            rest = (rest - low) >> bits
        if max(np.abs(digit).sum(1).max() for digit in digits) * 255 < EXACT:
            return first, last, bits, tuple(digit.astype(np.float32) for digit in digits)
    raise AssertionError(f"no digits are small enough to resize {size_in} to {size_out} pixels exactly")


@contextlib.contextmanager
def _exact_float32(device: torch.device):
    """No TF32 and no autocast: partial sums must be exact."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _resize_last_axis(pixels: torch.Tensor, size_out: int, block: int = 448) -> torch.Tensor:
    """One pass over the last axis: float32 bytes `[..., n]` to float32 bytes `[..., size_out]`.

    Output pixels are computed in blocks, each from the source pixels around it.
    """
    size_in = pixels.shape[-1]
    if size_in == size_out:
        return pixels
    parts = []
    for start in range(0, size_out, block):
        stop = min(start + block, size_out)
        first, last, bits, digits = _digit_matrices(size_in, size_out, start, stop)
        source = pixels[..., first:last]
        total = torch.full((1,), 1 << PRECISION_BITS - 1, dtype=torch.int32, device=pixels.device)  # rounding
        for place, digit in enumerate(digits):
            partial = source @ torch.from_numpy(digit).to(pixels.device).T
            total = total + (partial.to(torch.int32) << (bits * place))
        parts.append((total >> PRECISION_BITS).clamp_(0, 255).float())
    return torch.cat(parts, dim=-1)


def resize_like_pillow(image: torch.Tensor, width: int, height: int, *, vertical: bool | None = None) -> torch.Tensor:
    """Resizes as `PIL.Image.resize((width, height), BICUBIC)` does, on the image's device.

    Args:
        image: uint8 `[3, H, W]`.
        width: Width of the result in pixels.
        height: Height of the result in pixels.
        vertical: Run the vertical pass first; None does as the installed Pillow.

    Returns:
        uint8 `[3, height, width]`.
    """
    if vertical is None:
        vertical = resize_rule().vertical_first(image.shape[-1], image.shape[-2], width, height)
    with _exact_float32(image.device):
        pixels = image.float()
        for axis_is_vertical in (vertical, not vertical):
            if axis_is_vertical:
                pixels = _resize_last_axis(pixels.transpose(-1, -2), height).transpose(-1, -2)
            else:
                pixels = _resize_last_axis(pixels, width)
    return pixels.to(torch.uint8)


def cut_images(tiles: torch.Tensor, images: list[torch.Tensor], uncut: list[UncutImage]) -> torch.Tensor:
    """Cuts the images that workers sent whole, and inserts their tiles between those that workers cut.

    Args:
        tiles: uint8 `[T0, 3, S, S]`, the tiles that workers cut, in order.
        images: uint8 `[H, W, 3]` each, or the planes of a JPEG (see `device_color`), on the device; or the bytes of a
            JPEG (see `device_decode`), on the CPU.
        uncut: Grid, first tile and size of each image.

    Returns:
        uint8 `[T, 3, S, S]`, equal to what Pillow would have cut.

    Raises:
        ValueError: An image isn't uint8.
        UndecodableError: The device can't decode a JPEG.
    """
    size = tiles.shape[-1]
    total = len(tiles) + sum(image.grid.num_tiles for image in uncut)
    out = torch.empty(total, *tiles.shape[1:], dtype=torch.uint8, device=tiles.device)
    taken = torch.zeros(total, dtype=torch.bool)
    for image, (grid, first, width, height) in zip(decode_each(images, uncut, tiles.device), uncut, strict=True):
        if image.dtype != torch.uint8:
            raise ValueError(f"images to cut must be uint8, got {image.dtype} {list(image.shape)}")
        columns, rows, num = grid.columns, grid.rows, grid.columns * grid.rows
        image = (image if image.dim() == 3 else planes_to_rgb(image, width, height)).permute(2, 0, 1)
        resized = _resize(image, columns * size, rows * size)
        out[first : first + num] = (
            resized.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).reshape(num, 3, size, size)
        )
        if grid.thumbnail:
            out[first + num] = _resize(image, size, size)
        taken[first : first + grid.num_tiles] = True
    out[~taken.to(out.device)] = tiles
    return out


def _resize(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Resizes uint8 `[3, H, W]`: with Pillow itself on a CPU, where it is fastest."""
    if image.device.type != "cpu":
        return resize_like_pillow(image, width, height)
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
