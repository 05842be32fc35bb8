"""Decodes JPEGs on the training device: on a GPU with nvJPEG, on a CPU with libjpeg-turbo.

Workers then only read files, and send a tenth of the bytes of pixels or fewer. nvJPEG rounds and upsamples color in its
own way, so that pixels differ a little from those of the other routes (`benchmarks/bench_nvjpeg.py` measures by how
much); on a CPU they are equal.
"""

from collections.abc import Iterator, Sequence

import torch

from ..datasets.images.tiling import UncutImage

AT_ONCE = 1 << 25  # pixels that are decoded together, which bounds the memory: three bytes each


class UndecodableError(ValueError):
    """A JPEG that the device can't decode.

    Attributes:
        number: its index among the images of the batch.
        problem: what the decoder says.
    """

    def __init__(self, number: int, problem: str):
        self.number, self.problem = number, problem
        super().__init__(f"image {number} of the batch can't be decoded ({problem})")


def is_encoded(image: torch.Tensor) -> bool:
    """Whether an image of a batch is the bytes of a file."""
    return image.dim() == 1


def decode_each(
    images: Sequence[torch.Tensor], uncut: Sequence[UncutImage], device: torch.device
) -> Iterator[torch.Tensor]:
    """The images of a batch in order, with encoded ones decoded, several at a time.

    Args:
        images: uint8, encoded ones `[bytes]` on the CPU; any others are handed through.
        uncut: Their sizes.
        device: Where they are decoded.

    Yields:
        uint8 `[H, W, 3]` on the device for an encoded image.

    Raises:
        UndecodableError: The device can't decode an image, or finds another size than its header gave.
    """
    ready: dict[int, torch.Tensor] = {}
    for number, image in enumerate(images):
        if not is_encoded(image):
            yield image
            continue
        if number not in ready:
            ready = _decode(_next_group(images, uncut, number), images, device)
        pixels, size = ready.pop(number), uncut[number]
        if pixels.shape != (3, size.height, size.width):
            found = "x".join(map(str, pixels.shape[:0:-1]))
            raise UndecodableError(number, f"{found} pixels; its header says {size.width}x{size.height}")
        yield pixels.permute(1, 2, 0)


def _next_group(images: Sequence[torch.Tensor], uncut: Sequence[UncutImage], first: int) -> list[int]:
    """Encoded images from `first` on with at most `AT_ONCE` pixels together, and at least that one."""
    group, left = [], AT_ONCE
    for number in range(first, len(images)):
        if is_encoded(images[number]):
            left -= uncut[number].width * uncut[number].height
            if group and left < 0:
                break
            group.append(number)
    return group


def _decode(group: list[int], images: Sequence[torch.Tensor], device: torch.device) -> dict[int, torch.Tensor]:
    try:
        return dict(zip(group, _decode_jpegs([images[number] for number in group], device), strict=True))
    except RuntimeError as error:
        if len(group) == 1:
            raise UndecodableError(group[0], " ".join(str(error).split())[:200]) from None
    return {number: _decode([number], images, device)[number] for number in group}  # to find which one it is


def _decode_jpegs(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """uint8 `[3, H, W]` each."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(encoded, ImageReadMode.RGB, device=device)
