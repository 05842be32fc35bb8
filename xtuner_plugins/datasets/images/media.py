"""Opening images: the one loader of training, chat and evaluation.

- The camera's orientation (EXIF) is applied, once.
- Transparent pixels become white, 16-bit gray is scaled to 8 bits, an animation gives its first frame.
- Pixels of unknown range (floats, integers beyond 16 bits) are refused.
- An image with more than `MAX_PIXELS` pixels is refused before it is decoded.
- A path stays inside its image folder, and only files are opened: a pipe would be waited for without end.
- Only the formats of `FORMATS` are opened, whatever a name says: Pillow starts Ghostscript for EPS.
"""

import io
import os
import posixpath
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...errors import MediaError, SettingError, one_line, out_of_files
from ...files import is_url, local_path, masked, split_zip
from ..stores import Store

MAX_PIXELS = 178_956_970  # Pillow's own limit for decompression bombs (2 x 1 GiB / 4 / 3)
IMAGE_SUFFIXES = tuple(f".{name}" for name in "jpg jpeg png webp gif bmp tif tiff heic heif avif ppm".split())
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO", "TGA", "AVIF")
ORIENTATION_TAG = 0x0112
# EXIF orientation -> transposition to the upright image (Exif 2.32, table 6)
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
ORIENTATIONS = {tag: Image.Transpose[name] for tag, name in enumerate(_TURNS.split(), 2)}
SWAPS_SIDES = {5, 6, 7, 8}  # orientations under which width and height change places
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
HEIC = tuple(
    b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
)  # ISO 23008-12
IN_MEMORY = re.compile(r"<_io\.BytesIO object at 0x[0-9a-f]+>")  # how Pillow's messages call a `Blob`


@dataclass(eq=False)
class Blob:
    """An image or video that isn't a file of its own: part of a row of a table, or an object of a store.

    Args:
        name: what messages call it.
        content: its encoded bytes, or what reads them.
    """

    name: str
    content: bytes | Callable[[], bytes]

    @cached_property
    def data(self) -> bytes:
        """The encoded bytes, which a store is asked for once, when they are needed; errors as `Store.read`."""
        return self.content() if callable(self.content) else self.content

    def __str__(self) -> str:
        return self.name


MediaSource = str | os.PathLike | Blob  # what can be opened


def check_name(name: object, folder: str | None = None) -> None:
    """Check a name in a record, which comes from a stranger.

    Args:
        folder: what the name must not leave; None allows absolute names, and `..`.

    Raises:
        MediaError: an empty name, a URL, or a path that leaves the folder.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise MediaError("image_name", f"{name!r} is no file name", "name the image's file")
    if "://" in name or name.startswith("data:"):
        remedy = "download the image and name it by its path in the image folder"
        raise MediaError("image_name", f"{name[:80]!r} is a URL", remedy)
    if folder is not None and (os.path.isabs(name) or ".." in Path(name).parts):
        done = "is an absolute path" if os.path.isabs(name) else f"leaves the image folder {folder!r}"
        remedy = f"name it relative to the image folder {folder!r}, or set that folder to None"
        raise MediaError("image_outside", f"{name!r} {done}", remedy)


def natural(name: str) -> list:
    """Sorts `2.tar` before `10.tar`."""
    return [int(part) if odd % 2 else part for odd, part in enumerate(re.split(r"([0-9]+)", name))]


class ImageFolder:
    """Turns names in records into paths inside one folder.

    A `\\` in a name separates folders, as Windows writes them, where no file has the name as it is.

    Args:
        folder: the image folder; None allows absolute names, and resolves others against `base`.
        base: the annotation file's folder, used only when `folder` is None.

    Raises:
        SettingError: the folder isn't there.
    """

    def __init__(self, folder: str | os.PathLike | None, base: str | os.PathLike = "."):
        self.folder = None if folder is None else os.fspath(folder)
        self._root = os.fspath(base) if folder is None else self.folder
        if folder is not None and not os.path.isdir(folder):
            state = "is a file, and no .zip" if os.path.isfile(folder) else "isn't there"
            remedy = "correct its path; records without images need none"
            raise SettingError("image_folders", f"image folder {self.folder!r} {state}", remedy)
        self._real = os.path.join(os.path.realpath(self._root), "")

    def key(self) -> tuple:
        """What decides which image a name means, apart from the images themselves."""
        # Without a folder names may be absolute, or lead out of the annotation file's folder.
        return self.folder is not None, os.path.realpath(self._root)

    def resolve(self, name: str | Blob) -> str | Blob:
        """The path of the image `name` of a record, whether it exists or not; an image in the record as it is.

        Raises:
            MediaError: an empty name, a URL, or a path that leaves the folder.
        """
        if isinstance(name, Blob):
            return name
        check_name(name, self.folder)
        if "\\" in name and not os.path.lexists(os.path.join(self._root, name)):
            check_name(name := name.replace("\\", "/"), self.folder)
        path = os.path.join(self._root, name)
        if self.folder is not None and not os.path.realpath(path).startswith(self._real):
            problem = f"{name!r} is a link out of the image folder {self.folder!r}"
            remedy = "put the file itself into the folder, or set image_folders to where it lies"
            raise MediaError("image_outside", problem, remedy)
        return path


class StoreImages(Store):
    """Turns names in records into images below the prefix of a store."""

    @property
    def folder(self) -> str:
        """What messages call the prefix."""
        return self.shown

    def resolve(self, name: str | Blob) -> Blob:
        """As `ImageFolder.resolve`; nothing is read yet."""
        if isinstance(name, Blob):
            return name
        check_name(name := name.replace("\\", "/"), self.shown)  # no object's name holds the one of Windows
        key = posixpath.normpath(name)
        return Blob(self.place(key), partial(self.read, key))


def open_images(
    folder: str | os.PathLike | None, base: str | os.PathLike, options: Mapping[str, Any] | None = None
) -> ImageFolder | StoreImages:
    """What an entry of `image_folders` names: a folder, a zip, a folder in one, a store, or None.

    Args:
        base: what names are relative to without a folder, see `ImageFolder`; it may be in a store, too.
        options: fsspec's `storage_options`.

    Raises:
        SettingError: it isn't there, or is no whole zip.
    """
    path = local_path(os.fspath(base if folder is None else folder))
    if is_url(path):
        return StoreImages(path, options)
    archive, inside = split_zip("" if folder is None else path)
    if not archive:
        return ImageFolder(None if folder is None else path, base)
    images = StoreImages(f"zip://{inside}::{archive}")
    try:
        images.version()
    except MediaError as error:
        raise SettingError("image_folders", masked(error.problem), error.remedy, path) from None
    return images


def open_image(source: MediaSource) -> Image.Image:
    """Open an image and read its header; nothing is decoded yet.

    Raises:
        MediaError: the file is missing, no image, damaged, or has more than `MAX_PIXELS` pixels.
    """
    path = str(source)
    file = io.BytesIO(source.data) if isinstance(source, Blob) else path
    try:
        if file is path and not stat.S_ISREG(os.stat(path).st_mode):
            raise MediaError("image_missing", "no file, but a folder, a pipe or a device", "name the image's file")
        with warnings.catch_warnings():  # the limit below replaces Pillow's warning
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            image.close()
            remedy = f"at most {MAX_PIXELS} pixels are read; scale the image down"
            raise MediaError("image_pixels", f"{width}x{height} pixels", remedy)
    except Exception as error:
        raise _media_error(source, error) from None
    return image


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; damaged or missing EXIF counts as upright.

    Reads the header only. PNG's own `getexif` would decode the whole image, and a damaged image would then count as
    loaded, so the method of the base class is called.
    """
    try:
        value = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block doesn't make the image unusable
        return 1
    return value if value in ORIENTATIONS else 1


def image_size(source: MediaSource) -> tuple[int, int]:
    """(width, height) of the upright image, from its header alone; errors as `open_image`."""
    with open_image(source) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened image as it is shown."""
    width, height = image.size
    return (height, width) if orientation(image) in SWAPS_SIDES else (width, height)


def load_image(source: MediaSource, side: int | None = None) -> Image.Image:
    """Open and decode an image as upright RGB.

    Args:
        side: pixels that both sides keep: a JPEG is decoded at a half, a quarter or an eighth of its size, in half the
            time. All of its coded data are decoded in any case, so the same images are refused.

    Raises:
        MediaError: as `open_image`, or as `to_rgb`.
    """
    with open_image(source) as image:
        try:
            if side is not None:
                image.draft(None, (side, side))
            turn = ORIENTATIONS.get(orientation(image))
            image.load()
            upright = to_rgb(image)
            return upright if turn is None else upright.transpose(turn)
        except Exception as error:
            raise _media_error(source, error) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as RGB: transparency on white, 16-bit gray scaled, other modes as Pillow does.

    Raises:
        MediaError: floating-point pixels, or integers outside 0 to 65535, whose range is unknown.
    """
    if image.mode in SIXTEEN_BIT:
        # Pillow would clip at 255; dividing by 257 maps 65535 to 255 exactly.
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            problem = f"integer pixels from {pixels.min()} to {pixels.max()} have no known range"
            raise MediaError("image_mode", problem, "save the image with 8 or 16 bits")
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise MediaError("image_mode", "floating-point pixels have no known range", "save the image with 8 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _media_error(source: MediaSource, error: Exception) -> MediaError:
    path = str(source)
    if limit := out_of_files(error, MediaError, path):
        return limit
    text = IN_MEMORY.sub("the file", one_line(error, 1000).replace(repr(path), "the file"))
    match error:
        case MediaError():
            return MediaError(error.reason, error.problem, error.remedy, path)
        case FileNotFoundError():
            return MediaError("image_missing", "no such image", "correct the name or the image folder", path)
        case Image.DecompressionBombError():
            return MediaError("image_pixels", text, "scale the image down", path)
        case UnidentifiedImageError():
            with io.BytesIO(source.data) if isinstance(source, Blob) else open(source, "rb") as file:
                head = file.read(12)
            if head[4:] in HEIC:
                return MediaError("image_unreadable", "can't be decoded (it is HEIC)", "convert it to JPEG", path)
            text = "it begins as no known image does" if head else "an empty file"
    problem = f"can't be decoded ({text})"
    return MediaError("image_unreadable", problem, "fetch the image again, or leave it (or its record) out", path)
