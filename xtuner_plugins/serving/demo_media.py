"""What visitors of the web page send: images and videos, checked before they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..datasets.errors import MediaError
from ..datasets.images.media import decode_image
from ..datasets.images.tiling import DynamicTiling
from ..datasets.images.video import load_frames
from ..datasets.plan.budget import first_limit
from ..hub.constants import IMAGE_PLACEHOLDER
from ..inference.session import with_placeholders

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")


@dataclass(frozen=True)
class Limits:
    """What a visitor may send.

    Attributes:
        max_bytes: Of one file.
        max_pixels: Of one image, or of one frame of a video.
        max_files: With one question.
    """

    max_bytes: int
    max_pixels: int
    max_files: int = 16


@dataclass(frozen=True)
class Medium:
    """One file: an image, or the frames of a video.

    Attributes:
        name: File name.
        images: Upright RGB images.
        is_video: They are frames, which get one tile each as in training.
    """

    name: str
    images: tuple[Image.Image, ...]
    is_video: bool


def read_media(paths: Sequence[str], limits: Limits, num_frames: int) -> list[Medium]:
    """Opens the files of one question.

    Args:
        paths: Of the files.
        limits: Checked before anything is decoded.
        num_frames: Most frames of a video.

    Raises:
        MediaError: Too many files, a file that is too large, or one that is no readable image or video.
    """
    if len(paths) > limits.max_files:
        remedy = f"send at most {limits.max_files}"
        raise MediaError("media_number", f"{len(paths)} files with one question", remedy)
    return [_read(Path(path), limits, num_frames) for path in paths]


def _read(path: Path, limits: Limits, num_frames: int) -> Medium:
    is_video = path.suffix.lower() in VIDEO_SUFFIXES
    try:
        if not path.is_file():
            raise MediaError("media_missing", "no longer here", "send it again")
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise MediaError(
                "media_size", f"{size / 2**20:.0f} MB", f"at most {limits.max_bytes / 2**20:g} MB are read"
            )
        if is_video:
            images = load_frames(str(path), num_frames, limits.max_pixels)
        else:
            images = [decode_image(path.read_bytes(), path.name, limits.max_pixels)]
    except MediaError as error:
        raise MediaError(error.reason, error.problem, _remedy(error), path.name) from None
    return Medium(path.name, tuple(images), is_video)


def _remedy(error: MediaError) -> str:
    """Loaders speak of records; a visitor has none."""
    return "send it again, or another file" if "record" in error.remedy or "fetch" in error.remedy else error.remedy


def question_text(text: str, media: Sequence[Medium]) -> str:
    """The question with one placeholder per image; frames are numbered as in training.

    Raises:
        ValueError: The text holds placeholders, but not one per image.
    """
    num_images = sum(len(medium.images) for medium in media)
    if not any(medium.is_video for medium in media) or IMAGE_PLACEHOLDER in text:
        return with_placeholders(text, num_images)
    lines = []
    for medium in media:
        frames = range(1, len(medium.images) + 1)
        lines += (
            [f"Frame-{number}: {IMAGE_PLACEHOLDER}" for number in frames] if medium.is_video else [IMAGE_PLACEHOLDER]
        )
    return "\n".join([*lines, text])


def cut_media(media: Sequence[Medium], tiling: DynamicTiling, sharing: str) -> list[torch.Tensor]:
    """Tiles uint8 `[T, 3, S, S]` of each image and frame of one question, as training cuts them.

    Args:
        media: Of the question.
        tiling: The rule with the limit for all.
        sharing: How images share the limit; a frame is one tile.
    """
    stills = tiling.limited(first_limit(tiling.max_tiles, sum(not medium.is_video for medium in media), sharing))
    return [(tiling.limited(1) if medium.is_video else stills)(image) for medium in media for image in medium.images]
