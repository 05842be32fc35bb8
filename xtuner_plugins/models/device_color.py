"""Converts the planes of a JPEG to RGB on any device, bit-identical to libjpeg-turbo.

Most JPEGs store color at half the resolution of brightness (4:2:0), so that their planes have half the bytes of RGB
pixels:

    +---------------+
    |       Y       |  H' rows; H' and W' are height and width rounded up to even numbers
    +-------+-------+
    |  Cb   |  Cr   |  H' / 2 rows
    +-------+-------+

Upsampling is libjpeg's "fancy" one (3/4 of the nearer and 1/4 of the farther sample along each axis, alternately
rounded up and down); the conversion is JFIF's in 16-bit fixed point. Integer arithmetic makes the result exact.
"""

import torch

BITS = 16  # of the fixed-point factors
RED_CR, GREEN_CB, GREEN_CR, BLUE_CB = (round(factor * (1 << BITS)) for factor in (1.402, 0.34414, 0.71414, 1.772))


def planes_to_rgb(planes: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Converts the planes of a 4:2:0 image to RGB.

    Args:
        planes: uint8 `[3 H' / 2, W']`, see the module's docstring.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        uint8 `[height, width, 3]`.
    """
    rows = -(-height // 2)
    luma, chroma = planes[:height, :width].int(), planes[2 * rows :]
    columns = chroma.shape[1] // 2
    blue, red = (_upsample(part)[:height, :width].int() - 128 for part in (chroma[:, :columns], chroma[:, columns:]))
    half = 1 << BITS - 1
    rgb = (
        luma + (RED_CR * red + half >> BITS),
        luma + (-GREEN_CB * blue - GREEN_CR * red + half >> BITS),
        luma + (BLUE_CB * blue + half >> BITS),
    )
    return torch.stack([channel.clamp_(0, 255).to(torch.uint8) for channel in rgb], dim=-1)


def _upsample(plane: torch.Tensor) -> torch.Tensor:
    """uint8 `[h, w]` to int16 `[2 h, 2 w]`."""
    plane = plane.short()
    above, below = torch.cat([plane[:1], plane[:-1]]), torch.cat([plane[1:], plane[-1:]])
    tall = torch.stack([3 * plane + above, 3 * plane + below], 1).flatten(0, 1)
    left, right = torch.cat([tall[:, :1], tall[:, :-1]], 1), torch.cat([tall[:, 1:], tall[:, -1:]], 1)
    return torch.stack([3 * tall + left + 8 >> 4, 3 * tall + right + 7 >> 4], 2).flatten(1, 2)
