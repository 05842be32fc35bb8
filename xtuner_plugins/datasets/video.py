"""Videos as a few pictures: mp4, webm and what else PyAV reads, gif, or a folder of frames.

Frames are picked the same way every time: the video is divided into equal stretches and the middle of each is taken.
In the text `<video>` becomes one line a frame, as the official code writes it:

    Frame-1: <image>\\nFrame-2: <image>\\n...
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from .errors import MediaError
from .media import MAX_PIXELS, image_size, load_image, open_image, to_rgb
from .records import Medium, Record, Turn

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def pick_frames(total: int, num_frames: int) -> list[int]:
    """Numbers of the frames taken from a video of `total` frames: the middles of equal stretches."""
    num_frames = min(total, num_frames)
    edges = [index * total // num_frames for index in range(num_frames + 1)]
    return [(first + last) // 2 if last > first + 1 else first for first, last in zip(edges, edges[1:], strict=False)]


def probe_video(path: str, num_frames: int, max_pixels: int = MAX_PIXELS) -> tuple[int, tuple[int, int]]:
    """How many frames will be taken, and their (width, height), without decoding.

    Raises:
        MediaError: the video is missing, damaged or empty.
    """
    if os.path.isdir(path):
        frames = _folder_frames(path)
        return min(len(frames), num_frames), image_size(frames[0], max_pixels)
    if path.lower().endswith(".gif"):
        with open_image(path, max_pixels) as image:
            return min(_gif_length(image, path), num_frames), image.size
    with _container(path) as container:
        stream = _video_stream(container, path)
        size = (stream.codec_context.width, stream.codec_context.height)
        if size[0] * size[1] > max_pixels:
            raise MediaError("image_pixels", f"{size[0]}x{size[1]} pixels", "scale the video down", path)
        return min(_stream_length(container, stream, path), num_frames), size


def load_frames(path: str, num_frames: int, max_pixels: int = MAX_PIXELS) -> list[Image.Image]:
    """The picked frames as RGB pictures.

    Raises:
        MediaError: the video is missing, damaged or empty.
    """
    if os.path.isdir(path):
        frames = _folder_frames(path)
        return [load_image(frames[number], max_pixels) for number in pick_frames(len(frames), num_frames)]
    if path.lower().endswith(".gif"):
        return _gif_frames(path, num_frames, max_pixels)
    try:
        with _container(path) as container:
            total = _stream_length(container, _video_stream(container, path), path)
        wanted = pick_frames(total, num_frames)
        pictures = []
        with _container(path) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    pictures.append(frame.to_image())
                    if len(pictures) == len(wanted):
                        break
    except MediaError:
        raise
    except Exception as error:  # PyAV's errors have many bases
        raise _unreadable(path, error) from None
    if len(pictures) != len(wanted):
        raise MediaError(
            "video_unreadable",
            f"ends after {len(pictures)} of the {len(wanted)} frames wanted",
            "fetch the video again",
            path,
        )
    return pictures


def expand_videos(record: Record, num_frames: Sequence[int]) -> Record:
    """The record with each video written out as its frames.

    Args:
        num_frames: of each of the record's videos, in order.
    """
    if not any(medium.kind == "video" for medium in record.media):
        return record
    counts = iter(num_frames)
    turns = []
    for turn in record.turns:
        parts: list[str | Medium] = []
        for part in turn.parts:
            if not isinstance(part, Medium) or part.kind != "video":
                parts.append(part)
                continue
            for number in range(next(counts)):
                parts += [f"{chr(10) if number else ''}Frame-{number + 1}: ", Medium("frame", part.name)]
        turns.append(Turn(turn.role, tuple(parts)))
    return replace(record, turns=tuple(turns))


def _folder_frames(path: str) -> list[str]:
    """The pictures of a folder, with numbers in their names counted as numbers."""
    names = [name for name in os.listdir(path) if name.lower().endswith(FRAME_SUFFIXES)]
    if not names:
        raise MediaError("video_unreadable", "a folder without frames", "put jpg or png files into it", path)
    names.sort(key=lambda name: [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)])
    return [os.path.join(path, name) for name in names]


def _gif_length(image: Image.Image, path: str) -> int:
    try:
        return image.n_frames
    except Exception as error:
        raise _unreadable(path, error) from None


def _gif_frames(path: str, num_frames: int, max_pixels: int) -> list[Image.Image]:
    with open_image(path, max_pixels) as image:
        pictures = []
        try:
            for number in pick_frames(_gif_length(image, path), num_frames):
                image.seek(number)
                pictures.append(to_rgb(image.convert("RGBA")))
        except Exception as error:
            raise _unreadable(path, error) from None
    return pictures


def _container(path: str):
    import av  # heavy, and most data has no videos

    if not os.path.isfile(path):
        raise MediaError("video_missing", "no such video", "correct the name or the image folder", path)
    try:
        return av.open(path)
    except Exception as error:
        raise _unreadable(path, error) from None


def _video_stream(container, path: str):
    if not container.streams.video:
        raise MediaError("video_unreadable", "no pictures in it", "name a video", path)
    return container.streams.video[0]


def _stream_length(container, stream, path: str) -> int:
    """Number of frames: counted by packets, since headers may lack or misstate it."""
    try:
        total = sum(1 for packet in container.demux(stream) if packet.size)
    except Exception as error:
        raise _unreadable(path, error) from None
    if not total:
        raise MediaError("video_unreadable", "no frames in it", "fetch the video again", path)
    return total


def _unreadable(path: str, error: Exception) -> MediaError:
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return MediaError("video_unreadable", f"can't be decoded ({text})", "fetch the video again", path)
