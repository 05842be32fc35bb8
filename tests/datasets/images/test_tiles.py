"""Tiles of every kind of image that files hold: exact ones, and fast ones beside them, or the same complaint."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data

from xtuner_plugins.datasets import DynamicTiling
from xtuner_plugins.datasets.images import tiles
from xtuner_plugins.datasets.images.media import Blob, load_image
from xtuner_plugins.datasets.images.tiles import decode_plain, open_tiles
from xtuner_plugins.errors import MediaError

WIDTH, HEIGHT = 133, 91
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
UNUSABLE = {f"{name}.tiff" for name in ("float", "float16", "float-rgb", "wide", "signed")} | {"float.png", "cut.jpg"}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, pixels, bits=8, color=None, extra=b"", interlaced=False):
    """Any PNG of the specification, which Pillow writes only a few of; `pixels` are `[H, W]` or `[H, W, C]`."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    parts = [pixels[y::down, x::right] for x, y, right, down in ADAM7] if interlaced else [pixels]
    data = b""
    for line in (line for part in parts if part.size for line in part):
        places = (line.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1
        data += b"\0" + np.packbits(places.astype(np.uint8).reshape(-1)).tobytes()
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if color is None else color
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, int(interlaced))
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_pngs(folder, photo, deep, alpha, interlaced):
    """Every depth and color type, with and without the chunk that makes one color transparent."""
    mark, rng = "-interlaced" if interlaced else "", np.random.default_rng(1)
    for name, pixels, bits in [
        ("gray16", deep[..., 1], 16),
        ("gray-alpha16", np.dstack([deep[..., 1], alpha]), 16),
        ("rgb16", deep, 16),
        ("rgba16", np.dstack([deep, alpha]), 16),
        ("rgb8", photo, 8),
        ("rgba8", np.dstack([photo, alpha >> 8]), 8),
        ("gray-alpha8", np.dstack([photo[..., 0], alpha >> 8]), 8),
        *((f"gray{bits}", photo[..., 0] >> 8 - bits, bits) for bits in (1, 2, 4, 8)),
    ]:
        write_png(folder / f"{name}{mark}.png", pixels, bits, interlaced=interlaced)
        if "a" not in name.removeprefix("gray"):
            clear = chunk(b"tRNS", b"".join(struct.pack(">H", int(v)) for v in np.atleast_1d(pixels[5, 5])))
            write_png(folder / f"{name}-clear{mark}.png", pixels, bits, extra=clear, interlaced=interlaced)
    for bits in (1, 2, 4, 8):
        palette = chunk(b"PLTE", rng.integers(0, 256, 3 << bits, np.uint8).tobytes())
        clear = chunk(b"tRNS", rng.integers(0, 256, 1 << bits, np.uint8).tobytes())
        for name, extra in (("palette", palette), ("palette-clear", palette + clear)):
            write_png(folder / f"{name}{bits}{mark}.png", photo[..., 0] >> 8 - bits, bits, 3, extra, interlaced)


def write_others(folder, photo, deep, alpha):
    """JPEGs, TIFFs, animations and what else Pillow or tifffile writes."""
    image = Image.fromarray(photo)
    frames = [image.rotate(180), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for suffix in ("png", "gif", "webp"):
        image.save(folder / f"animated.{suffix}", save_all=True, append_images=frames)
    frames[0].save(folder / "animated-apart.png", save_all=True, append_images=[image, *frames], default_image=True)
    image.quantize(40).save(folder / "clear.gif", transparency=3)
    for suffix in ("webp", "tiff", "bmp", "ico", "tga"):
        Image.fromarray(np.dstack([photo, (alpha >> 8).astype(np.uint8)])).save(folder / f"alpha.{suffix}")
    for name in ("1.tiff", "L.tiff", "P.tiff", "CMYK.tiff", "LA.tiff", "CMYK.jpg", "L.jpg"):
        image.convert(name.partition(".")[0]).save(folder / name)
    for name in ("4:2:0", "4:2:2", "4:4:4"):
        image.save(folder / f"{name.replace(':', '')}.jpg", subsampling=name)
    for option in ("keep_rgb", "progressive", "restart_marker_rows"):
        image.save(folder / f"{option}.jpg", **{option: 1})
    image.save(folder / "several.mpo", save_all=True, append_images=frames)
    (folder / "several.jpg").write_bytes((folder / "several.mpo").read_bytes())
    (folder / "cut.jpg").write_bytes((folder / "420.jpg").read_bytes()[:-200])
    (folder / "deep.ppm").write_bytes(b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + deep.astype(">u2").tobytes())
    (folder / "deep.pgm").write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + deep[..., 0].astype(">u2").tobytes())
    gray = deep[..., 0]
    for name, pixels in {
        "gray16": gray,
        "rgb16": deep,
        "float": (gray / 65535).astype(np.float32),
        "float16": (gray / 65535).astype(np.float16),
        "float-rgb": (deep / 65535).astype(np.float32),
        "wide": gray.astype(np.uint32) << 8,
        "signed": (gray.astype(np.int32) - 32768).astype(np.int16),
    }.items():
        tifffile.imwrite(folder / f"{name}.tiff", pixels, photometric="rgb" if "rgb" in name else None)
    (folder / "float.png").write_bytes((folder / "float.tiff").read_bytes())


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    photo = np.ascontiguousarray(data.astronaut()[:HEIGHT, 100 : 100 + WIDTH])
    noise = np.random.default_rng(0).integers(0, 257, photo.shape)  # low bytes that count
    deep = (photo.astype(np.int64) * 256 + noise).clip(0, 65535).astype(np.uint16)
    alpha = np.broadcast_to(np.linspace(0, 65535, WIDTH).astype(np.uint16), (HEIGHT, WIDTH))
    for interlaced in (False, True):
        write_pngs(folder, photo, deep, alpha, interlaced)
    write_others(folder, photo, deep, alpha)
    return folder


def compare(paths, rule, fast=True):
    """Share of values that differ from the exact ones, and names that are refused, the same way by both."""
    differ, values, refused = 0, 0, set()
    for path in paths:
        try:
            exact = open_tiles(path, rule)
        except MediaError as error:
            refused.add(path.name)
            with pytest.raises(MediaError) as caught:
                open_tiles(path, rule, fast)
            assert str(caught.value) == str(error)
            continue
        found = open_tiles(path, rule, fast)
        assert found.shape == exact.shape and found.dtype == torch.uint8 and found.is_contiguous()
        difference = (found.int() - exact.int()).abs()
        assert difference.max() <= 2 and (difference > 1).float().mean() < 1e-3, path
        differ, values = differ + int((difference > 0).sum()), values + exact.numel()
    return differ / values, refused


def test_every_kind_is_nearly_the_same_and_refused_alike(kinds):
    paths = sorted(kinds.iterdir())
    assert len(paths) > 80
    for rule in (DynamicTiling(max_tiles=6, tile_size=112), DynamicTiling(max_tiles=2, tile_size=42)):
        share, refused = compare(paths, rule)
        assert share < 0.01 and refused == UNUSABLE


def test_turned_photographs(tmp_path):
    """They are turned after they have become small, by passes in the order of the upright image."""
    image = Image.fromarray(data.coffee())
    for turn in range(1, 9):
        exif = image.getexif()
        exif[0x0112] = turn
        image.convert("L" if turn == 6 else "RGB").save(tmp_path / "turned.jpg", exif=exif)
        share, _ = compare([tmp_path / "turned.jpg"], DynamicTiling(max_tiles=12, tile_size=112))
        assert share < 0.02


def test_torchvision_decodes_what_is_plain_to_the_same_bytes(kinds):
    """A file, or bytes of a table; the others are left to Pillow."""
    for name, channels in {"420.jpg": 3, "progressive.jpg": 3, "L.jpg": 1, "rgb8.png": 3, "gray8.png": 1}.items():
        exact = np.asarray(load_image(kinds / name))
        for source in (kinds / name, Blob(name, (kinds / name).read_bytes())):
            pixels = decode_plain(source)
            assert len(pixels) == channels
            np.testing.assert_array_equal(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy(), exact)
    assert decode_plain(kinds / "rgb16.png") is None and decode_plain(kinds / "alpha.tiff") is None


def test_auto_is_exact_where_nothing_is_resized_or_the_processor_is_slow(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tiles, "decode_plain", lambda source: asked.append(source))
    for name, size in (("whole.png", (112, 112)), ("other.png", (113, 112))):
        Image.new("RGB", size).save(tmp_path / name)
        open_tiles(tmp_path / name, DynamicTiling(max_tiles=1, tile_size=112), "auto")
    assert asked == ([tmp_path / "other.png"] if torch.backends.cpu.get_cpu_capability()[:3] == "AVX" else [])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    open_tiles(tmp_path / "other.png", DynamicTiling(max_tiles=1, tile_size=112), "auto")
    assert len(asked) < 2


def test_sixteen_bit_rgb_keeps_the_high_byte(kinds):
    eight = np.asarray(load_image(kinds / "rgb8.png")).astype(int)
    for bits in ("rgb16", "rgb16-interlaced", "rgb16-clear"):
        high = np.asarray(load_image(kinds / f"{bits}.png")).astype(int)
        assert np.abs(high - eight).mean() < 1  # wrapped modulo 256 it would be noise
