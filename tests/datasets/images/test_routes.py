"""Two routes to the same tiles: equal where they promise it, close where they don't."""

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.images.media import MAX_PIXELS, load_image
from xtuner_plugins.datasets.images.routes import ROUTES, decode_fast, open_tiles
from xtuner_plugins.datasets.images.tiling import DynamicTiling

RULE = DynamicTiling(max_tiles=12, tile_size=112)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Real photographs in the encodings that data comes in."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photos")
    paths = {}
    for name in ("astronaut", "coffee", "rocket"):
        image = Image.fromarray(getattr(data, name)())
        variants = {
            "420.jpg": dict(quality=85),
            "444.jpg": dict(quality=95, subsampling=0),
            "png.png": {},
            "progressive.jpg": dict(quality=80, progressive=True),
        }
        for suffix, options in variants.items():
            paths[f"{name}-{suffix}"] = folder / f"{name}-{suffix}"
            image.save(paths[f"{name}-{suffix}"], **options)
    image.convert("L").save(folder / "gray.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    image.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.full((90, 200), 40_000, np.uint16)).save(folder / "deep.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.save(folder / "web.webp", lossless=True)
    return folder


def all_files(photos):
    return sorted(photos.iterdir())


def test_both_decoders_give_the_same_bytes(photos):
    fast = 0
    for path in all_files(photos):
        pixels = decode_fast(path, MAX_PIXELS)
        if pixels is not None:
            fast += 1
            np.testing.assert_array_equal(pixels.numpy(), np.asarray(load_image(path)))
    assert fast == 13  # twelve photographs and the gray one; the rest is Pillow's


def test_the_torchvision_route_differs_by_a_level_here_and_there(photos):
    for path in all_files(photos):
        expected = open_tiles(path, RULE, "pillow", MAX_PIXELS).tiles
        tiles = open_tiles(path, RULE, "torchvision", MAX_PIXELS).tiles
        assert tiles.shape == expected.shape and tiles.is_contiguous()
        difference = (tiles.int() - expected.int()).abs()
        # fixed point with 15 instead of 22 bits, and the order of passes of Pillow before 13
        assert (difference > 0).float().mean() < 0.04 and (difference > 1).float().mean() < 1e-3, path


@pytest.mark.parametrize("route", ROUTES)
def test_bad_images_are_errors_on_every_route(tmp_path, route):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    Image.new("RGB", (64, 64)).save(tmp_path / "short.jpg")
    data = (tmp_path / "short.jpg").read_bytes()
    (tmp_path / "short.jpg").write_bytes(data[: len(data) - 200])
    Image.new("RGB", (200, 200)).save(tmp_path / "large.png")
    for name, limit in (
        ("cut.jpg", MAX_PIXELS),
        ("short.jpg", MAX_PIXELS),
        ("none.jpg", MAX_PIXELS),
        ("large.png", 100),
    ):
        with pytest.raises(MediaError):
            open_tiles(tmp_path / name, RULE, route, limit)
