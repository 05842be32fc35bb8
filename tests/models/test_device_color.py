"""Bit for bit what libjpeg-turbo makes of a JPEG's planes."""

import numpy as np
import pytest
import torch
from PIL import Image

from xtuner_plugins.datasets.images.routes import decode_planes
from xtuner_plugins.datasets.images.tiling import Grid, UncutImage
from xtuner_plugins.models.device_color import planes_to_rgb
from xtuner_plugins.models.device_resize import cut_images

SIZES = [(64, 64), (65, 64), (64, 65), (33, 47), (16, 16), (17, 15), (5, 5), (5, 200), (200, 5), (640, 427)]


def write(path, width, height, seed=0, **options):
    """A JPEG of smooth colors with noise and hard edges."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height))
    array = np.asarray(coarse).astype(int) + rng.integers(-40, 40, (height, width, 3))
    array[height // 3 :, width // 2 :] = (255, 0, 128)
    Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(path, **({"quality": 85} | options))
    return path


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"quality": 98, "progressive": True}], ids=str)
def test_equals_the_decoder(tmp_path, size, options):
    path = write(tmp_path / "a.jpg", *size, **options, subsampling="4:2:0")
    with Image.open(path) as image:
        planes = decode_planes(image)
    width, height = size
    assert planes.dtype == torch.uint8 and planes.shape == (3 * (-(-height // 2)), 2 * (-(-width // 2)))
    assert torch.equal(planes_to_rgb(planes, width, height), torch.from_numpy(np.array(Image.open(path))))


def test_other_images_have_no_such_planes(tmp_path):
    for name, options in {
        "444.jpg": {"subsampling": "4:4:4"},
        "422.jpg": {"subsampling": "4:2:2"},
        "rgb.jpg": {"keep_rgb": True},
        "tiny.jpg": {},
        "a.png": {},
        "a.webp": {},
    }.items():
        with Image.open(write(tmp_path / name, 4 if name == "tiny.jpg" else 64, 48, **options)) as image:
            assert decode_planes(image) is None, name
    gray = write(tmp_path / "b.png", 64, 48)
    Image.open(gray).convert("L").save(tmp_path / "gray.jpg")
    Image.open(gray).convert("CMYK").save(tmp_path / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "turned.jpg", 64, 48, exif=exif)
    (tmp_path / "cut.jpg").write_bytes(write(tmp_path / "whole.jpg", 640, 480).read_bytes()[:9000])
    for name in ("gray.jpg", "cmyk.jpg", "turned.jpg", "cut.jpg"):
        with Image.open(tmp_path / name) as image:
            assert decode_planes(image) is None, name


def test_planes_are_cut_like_the_image(tmp_path):
    path = write(tmp_path / "a.jpg", 333, 501)
    with Image.open(path) as image:
        planes = decode_planes(image)
    whole = torch.from_numpy(np.array(Image.open(path)))
    uncut = [UncutImage(Grid(2, 3, 1), 0, 333, 501), UncutImage(Grid(1, 1, 0), 7, 333, 501)]
    empty = torch.empty(0, 3, 56, 56, dtype=torch.uint8)
    expected = cut_images(empty, [whole, whole], uncut)
    assert torch.equal(cut_images(empty, [planes, whole], uncut), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_decoder_on_a_gpu(tmp_path, size):
    path = write(tmp_path / "a.jpg", *size)
    with Image.open(path) as image:
        planes = decode_planes(image).cuda()
    assert torch.equal(planes_to_rgb(planes, *size).cpu(), torch.from_numpy(np.array(Image.open(path))))
