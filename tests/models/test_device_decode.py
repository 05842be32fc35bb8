import numpy as np
import pytest
import torch
from PIL import Image

from xtuner_plugins.datasets.images.tiling import Grid, UncutImage
from xtuner_plugins.models import device_decode
from xtuner_plugins.models.device_decode import UndecodableError, decode_each

GRID = Grid(1, 1, 0)


@pytest.fixture
def batch(tmp_path):
    """Encoded images between decoded ones, their sizes, and the pixels that Pillow finds."""
    rng = np.random.default_rng(0)
    images, sizes, pixels = [], [], []
    for number, (width, height) in enumerate([(40, 30), (17, 50), (64, 64), (8, 9), (33, 21)]):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        if number % 2 == 0:
            image.save(path := tmp_path / f"{number}.jpg", subsampling=number)
            image = Image.open(path).convert("RGB")
        found = torch.from_numpy(np.array(image))
        images.append(torch.from_numpy(np.fromfile(path, np.uint8)) if number % 2 == 0 else found)
        sizes.append(UncutImage(GRID, number, width, height))
        pixels.append(found)
    return images, sizes, pixels


@pytest.mark.parametrize("at_once", [1, 40 * 30 + 64 * 64, 1 << 25])
def test_encoded_images_are_decoded_in_order(batch, monkeypatch, at_once):
    images, sizes, expected = batch
    monkeypatch.setattr(device_decode, "AT_ONCE", at_once)
    found = list(decode_each(images, sizes, torch.device("cpu")))
    assert len(found) == 5 and all(map(torch.equal, found, expected))


def test_no_more_pixels_are_decoded_at_once_than_allowed(batch, monkeypatch):
    images, sizes, _ = batch
    groups, decode = [], device_decode._decode_jpegs
    monkeypatch.setattr(device_decode, "AT_ONCE", 64 * 64)
    monkeypatch.setattr(
        device_decode, "_decode_jpegs", lambda group, *rest: groups.append(len(group)) or decode(group, *rest)
    )
    list(decode_each(images, sizes, torch.device("cpu")))
    assert groups == [1, 1, 1]  # 1200 and 4096 pixels are too many together, and so are 4096 and 693


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_broken_image_is_found_among_others(batch, number):
    images, sizes, _ = batch
    images[number] = images[number].clone()
    images[number][2:-2] = 7
    with pytest.raises(UndecodableError) as caught:
        list(decode_each(images, sizes, torch.device("cpu")))
    assert caught.value.number == number and caught.value.problem


def test_another_size_than_the_headers_is_refused(batch):
    images, sizes, _ = batch
    sizes[2] = sizes[2]._replace(width=63)
    with pytest.raises(UndecodableError, match="64x64 pixels; its header says 63x64"):
        list(decode_each(images, sizes, torch.device("cpu")))


@pytest.mark.gpu
def test_a_gpu_decodes_nearly_the_same_pixels(batch):
    images, sizes, expected = batch
    images = [image if device_decode.is_encoded(image) else image.cuda() for image in images]
    for found, pixels in zip(decode_each(images, sizes, torch.device("cuda")), expected, strict=True):
        difference = (found.cpu().int() - pixels.int()).abs().float()
        assert found.shape == pixels.shape and difference.mean() < 3  # of 255 levels, on noise
