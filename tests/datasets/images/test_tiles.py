"""Tiles of every kind of image that files hold: exact ones, and fast ones beside them, or the same complaint."""

import cv2
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
PHOTO = np.ascontiguousarray(data.astronaut()[:HEIGHT, 100 : 100 + WIDTH])
NOISE = np.random.default_rng(0).integers(0, 257, PHOTO.shape)  # low bytes that count
DEEP = (PHOTO.astype(np.int64) * 256 + NOISE).clip(0, 65535).astype(np.uint16)
ALPHA = np.broadcast_to(np.linspace(0, 65535, WIDTH).astype(np.uint16)[:, None], (HEIGHT, WIDTH, 1))
GRAY = DEEP[..., 0]
NUMBERS = {  # of unknown range
    "float": (GRAY / 65535).astype(np.float32),
    "float16": (GRAY / 65535).astype(np.float16),
    "float-rgb": (DEEP / 65535).astype(np.float32),
    "wide": GRAY.astype(np.uint32) << 8,
    "signed": (GRAY.astype(np.int32) - 32768).astype(np.int16),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A folder of images: depths, palettes, transparency, animations, subsampling, and what isn't plain."""
    folder, image = tmp_path_factory.mktemp("kinds"), Image.fromarray(PHOTO)
    frames = [image.rotate(180), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    Image.fromarray(GRAY).save(folder / "gray16.png")
    cv2.imwrite(str(folder / "rgb16.png"), DEEP[..., ::-1])
    cv2.imwrite(str(folder / "rgba16.png"), np.concatenate([DEEP[..., ::-1], ALPHA], 2))
    for bits in (1, 2, 4, 8):
        image.quantize(1 << bits).save(folder / f"palette{bits}.png", bits=bits)
        image.quantize(1 << bits).save(folder / f"palette{bits}-clear.png", bits=bits, transparency=1)
    for suffix in ("png", "gif", "webp"):
        image.save(folder / f"animated.{suffix}", save_all=True, append_images=frames)
    frames[0].save(folder / "animated-apart.png", save_all=True, append_images=[image, *frames], default_image=True)
    image.quantize(40).save(folder / "clear.gif", transparency=3)
    image.save(folder / "rgb8-clear.png", transparency=tuple(PHOTO[5, 5].tolist()))
    image.convert("L").save(folder / "gray8-clear.png", transparency=int(PHOTO[5, 5, 0]))
    for suffix in ("png", "webp", "tiff", "bmp", "ico", "tga"):
        Image.fromarray(np.concatenate([PHOTO, (ALPHA >> 8).astype(np.uint8)], 2)).save(folder / f"alpha.{suffix}")
    for name in "RGB.png L.png 1.png LA.png 1.tiff L.tiff P.tiff CMYK.tiff LA.tiff CMYK.jpg L.jpg".split():
        image.convert(name.partition(".")[0]).save(folder / name)
    for option in ("keep_rgb", "progressive", "restart_marker_rows"):
        image.save(folder / f"{option}.jpg", **{option: 1})
    for name in ("4:2:0", "4:2:2", "4:4:4"):
        image.save(folder / f"{name.replace(':', '')}.jpg", subsampling=name)
    image.save(folder / "several.jpg", "MPO", save_all=True, append_images=frames)
    (folder / "cut.jpg").write_bytes((folder / "420.jpg").read_bytes()[:-200])
    (folder / "deep.ppm").write_bytes(b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + DEEP.astype(">u2").tobytes())
    for name, pixels in {"gray16": GRAY, "rgb16": DEEP, **NUMBERS}.items():
        tifffile.imwrite(folder / f"{name}.tiff", pixels, photometric="rgb" if "rgb" in name else None)
    return folder


def compare(paths, rule):
    """Share of values that differ from the exact ones, and names that are refused, the same way by both."""
    differ, values, refused = 0, 0, set()
    for path in paths:
        try:
            exact = open_tiles(path, rule)
        except MediaError as error:
            refused.add(path.name)
            with pytest.raises(MediaError) as caught:
                open_tiles(path, rule, fast=True)
            assert str(caught.value) == str(error)
            continue
        found = open_tiles(path, rule, fast=True)
        assert found.shape == exact.shape and found.dtype == torch.uint8 and found.is_contiguous()
        difference = (found.int() - exact.int()).abs()
        assert difference.max() <= 2 and (difference > 1).float().mean() < 1e-3, path
        differ, values = differ + int((difference > 0).sum()), values + exact.numel()
    return differ / values, refused


def test_every_kind_is_nearly_the_same_and_refused_alike(kinds):
    for rule in (DynamicTiling(max_tiles=6, tile_size=112), DynamicTiling(max_tiles=2, tile_size=42)):
        share, refused = compare(sorted(kinds.iterdir()), rule)
        assert share < 0.01 and refused == {f"{name}.tiff" for name in NUMBERS} | {"cut.jpg"}


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
    """A file, or bytes of a table; the others are left to Pillow, which keeps the high byte of 16 bits."""
    for name, channels in {"420.jpg": 3, "progressive.jpg": 3, "L.jpg": 1, "RGB.png": 3, "L.png": 1}.items():
        exact = np.asarray(load_image(kinds / name))
        for source in (kinds / name, Blob(name, (kinds / name).read_bytes())):
            pixels = decode_plain(source)
            assert len(pixels) == channels
            np.testing.assert_array_equal(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy(), exact)
    assert decode_plain(kinds / "rgb16.png") is None and decode_plain(kinds / "alpha.tiff") is None
    assert np.abs(np.asarray(load_image(kinds / "rgb16.png")).astype(int) - PHOTO).mean() < 1


def test_auto_is_exact_where_nothing_is_resized_or_the_processor_is_slow(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tiles, "decode_plain", lambda source: asked.append(source))
    for capability, fast in (("AVX2", ["other.png"]), ("DEFAULT", [])):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda own=capability: own)
        for name, size in (("whole.png", (112, 112)), ("other.png", (113, 112))):
            Image.new("RGB", size).save(tmp_path / name)
            open_tiles(tmp_path / name, DynamicTiling(max_tiles=1, tile_size=112), "auto")
        assert [path.name for path in asked] == fast
        asked.clear()
