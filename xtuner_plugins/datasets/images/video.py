"""Videos as a few images: mp4, webm, gif and other formats of PyAV, or a folder of frames.

The video is divided into equal stretches, by number of frames and not by time, and the middle frame of each is taken.
Frames are rotated as players do (phones store portrait videos sideways, with a note in the file), and transparent parts
become white, as in images.

One thread decodes and converts: a forked worker that frees a decoder or a converter with threads, which it inherited as
garbage, would wait for them for ever.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from PIL import Image

from ...errors import MediaError, one_line
from . import media
from .media import IMAGE_SUFFIXES, ORIENTATIONS, Blob, ImageFolder, MediaSource, image_size, load_image, natural, to_rgb

# Containers that hold the images themselves. The others list further files (concat, HLS, DASH), whatever the name of
# the file is, and could lead out of the image folder.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,m4v,h264,hevc,av1,ivf,rm,nut,mxf,dv,apng,gif"
# (a, b, c, d) of a display matrix, x' = a x + c y and y' = b x + d y with y downwards, of each EXIF orientation from 2
MATRICES = [(-1, 0, 0, 1), (-1, 0, 0, -1), (1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0), (0, -1, 1, 0)]
TURNS = dict(zip(MATRICES, ORIENTATIONS.values(), strict=True))


def pick_frames(total: int, num_frames: int) -> list[int]:
    """Indices of the frames taken from a video of `total` frames: the middles of equal stretches."""
    num_frames = min(total, num_frames)
    edges = [index * total // num_frames for index in range(num_frames + 1)]
    return [(first + last) // 2 for first, last in pairwise(edges)]


def probe_video(path: MediaSource, num_frames: int) -> tuple[int, tuple[int, int]]:
    """How many frames will be taken, and their upright (width, height); few are decoded. Errors as `load_frames`."""
    if frames := _folder_frames(path):
        return min(len(frames), num_frames), image_size(frames[0])
    total = _count(path, num_frames)
    return min(total, num_frames), _take(path, [0])[0].size


def load_frames(path: MediaSource, num_frames: int) -> list[Image.Image]:
    """The picked frames as upright RGB images; `MediaError` where the video is missing, damaged or empty."""
    if frames := _folder_frames(path):
        return [load_image(frames[number]) for number in pick_frames(len(frames), num_frames)]
    total = _count(path, num_frames)
    images = _take(path, wanted := pick_frames(total, num_frames))
    if len(images) < len(wanted):  # some packets hold no visible frame
        total = sum(1 for _ in _decode(path))
        if total < len(wanted):
            raise _unreadable(path, f"ends after {total} frames, {len(wanted)} are wanted")
        images = _take(path, pick_frames(total, num_frames))
    return images


def _folder_frames(path: MediaSource) -> list[str]:
    """The images of a folder, numbers in their names sorted as numbers; none where it is no folder."""
    if isinstance(path, Blob) or not os.path.isdir(path):
        return []
    names = [name for name in os.listdir(path) if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
    if not names:
        raise MediaError("video_unreadable", "a folder without frames", "put jpg or png files into it", path)
    return list(map(ImageFolder(path).resolve, sorted(names, key=natural)))  # which refuses links out of it


@contextmanager
def _opened(path: MediaSource):
    """(container, video stream) of a video; any error while it is open becomes a `MediaError`."""
    import av  # heavy, and most data has no videos

    if not isinstance(path, Blob) and not os.path.isfile(path):
        raise MediaError("video_missing", "no such video", "correct the name or the image folder", path)
    try:
        file = io.BytesIO(path.data) if isinstance(path, Blob) else f"file:{path}"
        with av.open(file, options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                raise MediaError("video_unreadable", "no moving images in it, only sound", "name a video", str(path))
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > media.MAX_PIXELS:
                raise MediaError("image_pixels", f"{width}x{height} pixels", "scale the video down", str(path))
            stream.codec_context.thread_count = 1
            yield container, stream
    except MediaError:
        raise
    except Exception as error:  # PyAV's errors have many bases
        raise _unreadable(path, f"can't be decoded ({one_line(error).replace(f'file:{path}', 'the file')})") from None


def _count(path: MediaSource, num_frames: int) -> int:
    """Number of frames, or of packets where there are many; headers may lack or misstate it.

    A packet may hold half a frame (interlaced) or no visible one, so few packets are decoded and counted.
    """
    total = 0
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise _unreadable(path, f"damaged or cut off after {total} frames")
            total += packet.size > 0
    if total <= 2 * num_frames:
        total = sum(1 for _ in _decode(path))
    if not total:
        raise _unreadable(path, "no frames in it")
    return total


def _decode(path: MediaSource) -> Iterator:
    """The frames of a video, as objects of PyAV."""
    with _opened(path) as (container, stream):
        yield from container.decode(stream)


def _take(path: MediaSource, numbers: Sequence[int]) -> list[Image.Image]:
    """The frames with these indices, as far as the video has them."""
    frames = zip(range(numbers[-1] + 1), _decode(path), strict=False)
    return [_upright(frame) for number, frame in frames if number in numbers]


def _upright(frame) -> Image.Image:
    """A frame as players show it: rotated, without transparency."""
    if any(component.is_alpha for component in frame.format.components):
        image = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba", threads=1), "RGBA"))
    else:
        image = frame.to_image(threads=1)
    matrix = np.frombuffer(bytes(frame.side_data.get("DISPLAYMATRIX") or bytes(36)), np.int32)[[0, 1, 3, 4]]
    scale = max(*np.abs(matrix[:2].astype(float)), 1)
    turn = TURNS.get(tuple(np.rint(matrix / scale).astype(int).tolist()))
    return image if turn is None else image.transpose(turn)


def _unreadable(path: MediaSource, problem: str) -> MediaError:
    return MediaError("video_unreadable", problem, "fetch the video again, or leave it (or its record) out", str(path))
