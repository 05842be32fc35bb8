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
from xtuner_plugins.datasets.images.media import image_size, load_image
from xtuner_plugins.datasets.images.tiles import decode_plain, open_tiles
from xtuner_plugins.errors import MediaError

PHOTO = np.ascontiguousarray(data.astronaut()[:91, 100:233])
ALPHA = np.full((91, 133, 1), 99, np.uint8)
DEEP = PHOTO.astype(np.uint16) * 256 + np.random.default_rng(0).integers(0, 256, PHOTO.shape).astype(np.uint16)
NUMBERS = {"float": np.float32, "float16": np.float16, "wide": np.uint32, "signed": np.int16}  # of unknown range
RGB, TURNED = Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1, ::-1])
SEVERAL = {"save_all": True, "append_images": [TURNED, TURNED]}
PLAIN = {"420.jpg": {}, "444.jpg": {"subsampling": 0}, "progressive.jpg": {"progressive": True}, "rgb.png": {}}
SAVED = {name: (RGB, options) for name, options in PLAIN.items()} | {
    "keep_rgb.jpg": (RGB, {"keep_rgb": True}),
    "several.jpg": (RGB, {"format": "MPO", **SEVERAL}),
    "animated.png": (RGB, SEVERAL),
    "animated.gif": (RGB, SEVERAL),
    "clear.png": (RGB, {"transparency": tuple(PHOTO[5, 5].tolist())}),
    "clear-gray.png": (RGB.convert("L"), {"transparency": int(PHOTO[5, 5, 0])}),
    "palette.png": (RGB.quantize(4), {"bits": 2}),
    "alpha.webp": (Image.fromarray(np.concatenate([PHOTO, ALPHA], 2)), {}),
    "gray16.png": (Image.fromarray(DEEP[..., 0]), {}),
}
SAVED |= {
    name: (RGB.convert(name.partition(".")[0]), {}) for name in "L.jpg L.png 1.png LA.png CMYK.jpg P.tiff".split()
}


def write_kinds(folder):
    """Images of all subsamplings, depths, palettes, transparencies, animations, and what can't be read."""
    for name, (image, options) in SAVED.items():
        image.save(folder / name, **options)
    cv2.imwrite(str(folder / "rgb16.png"), DEEP[..., ::-1])
    (folder / "cut.jpg").write_bytes((folder / "420.jpg").read_bytes()[:-200])
    for name, kind in NUMBERS.items():
        tifffile.imwrite(folder / f"{name}.tiff", PHOTO[..., 0].astype(kind) - kind(100))


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


def test_every_kind_is_nearly_the_same_and_refused_alike(tmp_path, monkeypatch):
    write_kinds(tmp_path)
    gray, sides = tiles._resize_gray, []
    monkeypatch.setattr(tiles, "_resize_gray", lambda *args: sides.append(args[3]) or gray(*args))
    for rule in (DynamicTiling(max_tiles=6, tile_size=112), DynamicTiling(max_tiles=2, tile_size=42)):
        share, refused = compare(sorted(tmp_path.iterdir()), rule)
        assert 0 < share < 0.01 and refused == {f"{name}.tiff" for name in NUMBERS} | {"cut.jpg"}
    assert sides and {side % 112 for side in sides} == {0}  # 42 has no quarters
    names = (*PLAIN, "L.jpg", "L.png", "rgb16.png")
    plain = {name: decode_plain(tmp_path / name, Image.open(tmp_path / name)) for name in names}
    assert [name for name, pixels in plain.items() if pixels is None] == ["rgb16.png"]
    for name in ("rgb.png", "L.jpg", "L.png"):
        assert np.array_equal(plain[name].permute(1, 2, 0).squeeze(), Image.open(tmp_path / name)), name


def test_turned_photographs(tmp_path):
    """By two tables of turns; the fast way turns when they have become small, in the order of the upright image."""
    image = Image.fromarray(data.coffee())
    for turn in range(1, 9):
        exif = image.getexif()
        exif[0x0112] = turn
        image.convert("L" if turn == 6 else "RGB").save(tmp_path / "turned.jpg", exif=exif)
        share, _ = compare([path := tmp_path / "turned.jpg"], DynamicTiling(max_tiles=12, tile_size=112))
        assert share < 0.02 and image_size(path) == load_image(path).size == image.size[:: -1 if turn > 4 else 1]


def test_auto_is_exact_where_nothing_is_resized_or_the_processor_is_slow(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tiles, "decode_plain", lambda source, header: asked.append(source))
    for capability, fast in (("AVX2", ["other.png"]), ("DEFAULT", [])):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda own=capability: own)
        for name, size in (("whole.png", (112, 112)), ("other.png", (113, 112))):
            Image.new("RGB", size).save(tmp_path / name)
            open_tiles(tmp_path / name, DynamicTiling(max_tiles=1, tile_size=112), "auto")
        assert [path.name for path in asked] == fast
        asked.clear()
