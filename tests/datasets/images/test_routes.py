"""Four routes to the same tiles: equal where they promise it, close where they don't."""

import numpy as np
import pytest
import torch
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset, collate, collate_packed
from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.images.media import MAX_PIXELS, load_image
from xtuner_plugins.datasets.images.routes import ON_DEVICE, ROUTES, Allowance, decode_fast, open_tiles
from xtuner_plugins.datasets.images.tiling import DynamicTiling, UncutImage
from xtuner_plugins.models.device_resize import cut_images

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


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Images larger than their tiles: a page that has planes, one that hasn't, one far too large; and a small one."""
    from skimage import data

    folder = tmp_path_factory.mktemp("pages")
    page = Image.fromarray(data.page()).convert("RGB").resize((601, 843))
    page.save(folder / "planes.jpg")
    page.save(folder / "444.jpg", subsampling=0)
    page.save(folder / "page.png")
    page.resize((3000, 4200)).save(folder / "huge.jpg")
    page.resize((120, 168)).save(folder / "small.jpg")  # thirteen tiles
    return folder


def test_a_larger_image_is_sent_as_planes_or_tiles(pages):
    sizes = {}
    for path in all_files(pages):
        sent = open_tiles(path, RULE, "device", MAX_PIXELS)
        sizes[path.name] = None if sent.image is None else sent.image.numel()
        assert sent.size == Image.open(path).size
    assert sizes == {
        "444.jpg": None,
        "page.png": None,
        "huge.jpg": None,
        "planes.jpg": 602 * 844 * 3 // 2,
        "small.jpg": 120 * 168 * 3,
    }


def test_larger_images_go_whole_while_smaller_ones_have_saved_the_bytes(pages):
    allowance, sent, own = Allowance(), 0, 0
    kinds = []
    for path in [*[pages / "small.jpg"] * 5, *[pages / "planes.jpg"] * 4, *[pages / "page.png"] * 2] * 3:
        source = open_tiles(path, RULE, "device", MAX_PIXELS, allowance)
        kinds.append("tiles" if source.image is None else "planes" if source.image.dim() == 2 else "whole")
        taken = (source.tiles if source.image is None else source.image).numel()
        instead = source.grid.num_tiles * 3 * 112 * 112
        sent, own = sent + taken, own + instead
        # planes may be more than the tiles; what goes whole, and is larger, has been saved before
        assert kinds[-1] != "whole" or taken <= instead or sent <= own
    assert {"whole", "planes", "tiles"} <= set(kinds)


def test_an_allowance_is_neither_saved_up_nor_owed_without_end():
    allowance = Allowance()
    allowance.count(-10 * Allowance.MOST)
    assert allowance.left == Allowance.MOST and allowance.allows(Allowance.MOST)
    allowance.count(10 * Allowance.MOST)
    assert allowance.left == -Allowance.MOST and allowance.allows(0) and not allowance.allows(1)


def test_the_device_route_ends_in_the_pillow_routes_tiles(photos, pages):
    whole = 0
    for path in [*all_files(photos), *all_files(pages)]:
        expected = open_tiles(path, RULE, "pillow", MAX_PIXELS)
        sent = open_tiles(path, RULE, "device", MAX_PIXELS)
        assert sent.grid == expected.grid and sent.grid.num_tiles == len(expected.tiles)
        if sent.image is None:
            assert torch.equal(sent.tiles, expected.tiles)
            continue
        whole += 1
        assert sent.image.dim() == 2 or sent.image.numel() <= expected.tiles.numel()
        uncut = [UncutImage(sent.grid, 0, *sent.size)]
        tiles = cut_images(torch.empty(0, 3, 112, 112, dtype=torch.uint8), [sent.image], uncut)
        assert torch.equal(tiles, expected.tiles), path
    assert whole > 4


def test_the_nvjpeg_route_sends_files_and_ends_in_the_same_tiles(photos, pages):
    encoded = []
    for path in [*all_files(photos), *all_files(pages)]:
        expected = open_tiles(path, RULE, "pillow", MAX_PIXELS)
        sent = open_tiles(path, RULE, "nvjpeg", MAX_PIXELS)
        assert sent.grid == expected.grid
        if sent.image is None:
            assert torch.equal(sent.tiles, expected.tiles)
            continue
        if sent.image.dim() == 1:
            encoded.append(path.name)
            assert sent.image.numpy().tobytes() == path.read_bytes()
        uncut = [UncutImage(sent.grid, 0, *sent.size)]
        tiles = cut_images(torch.empty(0, 3, 112, 112, dtype=torch.uint8), [sent.image], uncut)
        assert torch.equal(tiles, expected.tiles), path
    assert len(encoded) == 9 + 3  # neither the gray, CMYK and turned ones, nor PNG and WebP, nor one beyond its tiles
    assert "huge.jpg" not in encoded and "astronaut-progressive.jpg" in encoded


def test_a_file_is_sent_only_if_its_image_ends_in_it(photos, tmp_path):
    data = (photos / "coffee-420.jpg").read_bytes()
    for name, bytes_, dim in (("whole", data, 1), ("padded", data + bytes(40), 1), ("trailer", data + bytes(900), 2)):
        (tmp_path / name).write_bytes(bytes_)
        assert open_tiles(tmp_path / name, RULE, "nvjpeg", MAX_PIXELS).image.dim() == dim, name


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


@pytest.fixture
def datasets(data_base, photos, write_data, qa):
    names = [path.name for path in all_files(photos)]
    records = [qa("<image>", "One.", image=name) for name in names] + [
        qa("none", "None."),
        qa("<image> <image>", "Two.", image=names[:2]),
    ]
    path = write_data(records)
    return {
        route: MultimodalDataset(data_base, path, str(photos), route=route, num_threads=threads)
        for route, threads in (("pillow", 0), ("device", 2), ("nvjpeg", 2))
    }


@pytest.mark.parametrize("route", ON_DEVICE)
@pytest.mark.parametrize("put_together", [collate, collate_packed])
def test_batches_of_routes_on_the_device_are_cut_into_the_same_tiles(datasets, put_together, route):
    indices = list(range(len(datasets["pillow"])))
    expected = put_together(datasets["pillow"].__getitems__(indices))
    batch = put_together(datasets[route].__getitems__(indices))  # with threads
    assert torch.equal(batch["num_tiles"], expected["num_tiles"]) and batch["sources"] == expected["sources"]
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    tiles = cut_images(batch["tiles"], batch["images"], batch["uncut"])
    assert len(batch["images"]) and torch.equal(tiles, expected["tiles"])
