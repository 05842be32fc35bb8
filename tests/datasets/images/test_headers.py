"""Sizes of plain JPEG and PNG files from their first bytes: Pillow's, or left to Pillow."""

import io
import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.images import media
from xtuner_plugins.datasets.images.headers import HEAD, plain_size, read_plain_size
from xtuner_plugins.datasets.images.media import Blob, image_size

ICC = b"\0" * 36 + b"acsp" + b"\0" * 200
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def encoded(size=(40, 30), mode="RGB", suffix="jpeg", **options):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def exif(orientation=6, order="<", **tags):
    data = Image.Exif()
    data.endian = order
    data[0x0112] = orientation
    data.update({0x010F: "maker", 0x011A: 72.0, 0x0128: 2})
    return data


def with_segment(data, marker, content):
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + data[2:]


def with_chunk(data, kind, content):
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data[:33] + chunk + data[33:]


def tiff(*entries, order="<"):
    """EXIF with one directory of (tag, type, count, value or offset)."""
    rows = b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", len(entries)) + rows + bytes(4)


def png_text(key, value):
    text = PngImagePlugin.PngInfo()
    text.add_text(key, value)
    return text


PLAIN = {
    "jpeg": encoded(),
    "progressive": encoded(progressive=True),
    "gray": encoded(mode="L"),
    "cmyk": encoded(mode="CMYK"),
    "upright": encoded(exif=exif(1)),
    "turned": encoded(exif=exif(6)),
    "turned, big-endian": encoded(exif=exif(8, ">")),
    "mirrored": encoded(exif=exif(2)),
    "no orientation": encoded(exif=exif(99)),
    "icc": encoded(icc_profile=ICC),
    "comment": encoded(comment=b"made here"),
    "xmp without orientation": encoded(xmp=b"<x:xmpmeta/>"),
    "xmp and exif": encoded(xmp=XMP, exif=exif(3)),
    "png": encoded(suffix="png"),
    "png, palette": encoded(mode="P", suffix="png"),
    "png, alpha": encoded(mode="RGBA", suffix="png"),
    "png, one bit": encoded(mode="1", suffix="png"),
    "png, text": encoded(suffix="png", pnginfo=png_text("Software", "ours"), dpi=(72, 72)),
}
LEFT = {
    "xmp": encoded(xmp=XMP),
    "photoshop": with_segment(encoded(), 0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0" + b"\0" * 20),
    "several images": encoded(suffix="mpo", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    "exif twice": with_segment(encoded(exif=exif(6)), 0xE1, b"Exif\0\0MM\0*\0\0\0\x08"),
    "short adobe segment": with_segment(encoded(), 0xEE, b"Adobe"),
    "short jfif segment": encoded()[:2] + with_segment(b"\xff\xd8" + encoded()[20:], 0xE0, b"JFIF\0")[2:],
    "value outside exif": with_segment(encoded(), 0xE1, tiff((0x010F, 2, 40, 900), (0x0112, 3, 1, 6))),
    "orientation as two numbers": with_segment(encoded(), 0xE1, tiff((0x0112, 3, 2, 6))),
    "unit as text": with_segment(encoded(), 0xE1, tiff((0x0112, 3, 1, 6), (0x0128, 2, 1, 0))),
    "cut": encoded()[:150],
    "png, exif": encoded(suffix="png", exif=exif(6)),
    "png, icc": encoded(suffix="png", icc_profile=ICC),
    "png, transparency": encoded(mode="P", suffix="png", transparency=0),
    "png, xmp as text": encoded(suffix="png", pnginfo=png_text("XML:com.adobe.xmp", XMP.decode())),
    "png, exif as text": encoded(suffix="png", pnginfo=png_text("Raw profile type exif", "\n\n\n00")),
    "animated": encoded(suffix="png", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
    "gif": encoded(suffix="gif"),
    "html": b"<html>404</html>",
    "empty": b"",
}


def pillow_size(data, monkeypatch):
    """`image_size` as Pillow alone gives it, or its error."""
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(media, "plain_size", lambda data: None)
        try:
            return image_size(Blob("it", data))
        except MediaError as error:
            return error


@pytest.mark.parametrize("name", PLAIN)
def test_plain_headers_are_understood(name, monkeypatch):
    size = plain_size(PLAIN[name])
    assert size is not None and size == pillow_size(PLAIN[name], monkeypatch)
    assert (size == (30, 40)) == name.startswith("turned")


@pytest.mark.parametrize("name", LEFT)
def test_everything_else_is_left_to_pillow(name):
    assert plain_size(LEFT[name]) is None


def mutate(data, rng):
    """A damaged header: bytes changed, removed, inserted or exchanged, lengths set, checksums of PNG repaired."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        end = min(len(data), rng.choice([30, 200, 700, len(data)]))
        place = rng.randrange(2, max(3, end))
        match rng.randrange(6):
            case 0 | 1:
                data[place : place + 1] = bytes([rng.choice([0, 1, 2, 3, 5, 255, rng.randrange(256)])])
            case 2:
                del data[place : place + rng.choice([1, 2, 4, 30])]
            case 3:
                data[place:place] = rng.randbytes(rng.choice([1, 2, 4]))
            case 4:
                other = rng.randrange(2, max(3, end))
                data[place : place + 4] = data[other : other + 4]
            case 5:
                del data[rng.randrange(2, len(data) + 1) :]
    if data.startswith(b"\x89PNG") and rng.random() < 0.8:
        place = 8
        while place + 12 <= len(data):
            (length,) = struct.unpack_from(">I", data, place)
            end = place + 8 + length
            if end + 4 > len(data):
                break
            data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
            place = end + 4
    return bytes(data)


@pytest.mark.parametrize("num", [4000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_damaged_headers_have_pillows_size_or_error(num, monkeypatch):
    rng, understood = random.Random(num), 0
    samples = [*PLAIN.values(), *(data for data in LEFT.values() if data[:3] in (b"\xff\xd8\xff", b"\x89PN"))]
    for case in range(num):
        data = mutate(rng.choice(samples), rng)
        size = plain_size(data)
        if size is not None and size[0] * size[1] <= media.MAX_PIXELS:
            understood += 1
            assert size == pillow_size(data, monkeypatch), (case, data[:700])
    assert understood > num / 10  # else nothing is compared


def test_a_file_is_opened_once_and_read_as_far_as_needed(tmp_path, monkeypatch):
    short, long = tmp_path / "a.jpg", tmp_path / "b.jpg"
    short.write_bytes(encoded((300, 200)))
    long.write_bytes(encoded((300, 200), comment=b"." * 40_000))
    opened, read = [], []
    own_open, own_read = os.open, os.read
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(str(path)) or own_open(path, flags))
    monkeypatch.setattr(os, "read", lambda file, num: read.append(num) or own_read(file, num))
    assert read_plain_size(short) == (300, 200) and opened == [str(short)] and read == [HEAD]
    assert read_plain_size(long) == (300, 200) and opened == [str(short), str(long)] and len(read) == 3


def test_no_descriptor_stays_open(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded())
    before = len(os.listdir("/proc/self/fd"))
    for name in ("a.jpg", "none.jpg", ".", "a\0b"):
        read_plain_size(os.path.join(tmp_path, name))
    assert len(os.listdir("/proc/self/fd")) == before


def test_limits_of_pixels_are_pillows(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded((40, 30)))
    with pytest.raises(MediaError, match="40x30 pixels"):
        image_size(path, max_pixels=1199)
    data = bytearray(encoded(suffix="png"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert plain_size(bytes(data)) == (60_000, 60_000)
    with pytest.raises(MediaError) as caught:
        image_size(Blob("it", bytes(data)), max_pixels=10**10)
    assert caught.value.reason == "image_pixels"
