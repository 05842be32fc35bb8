"""Every kind of image that files hold: the same pixels on every route, or the same complaint.

`pillow` is the reference; `device` must end in its tiles exactly, `torchvision` must decode its pixels exactly.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset, RecordError, collate
from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.images.media import MAX_PIXELS, load_image
from xtuner_plugins.datasets.images.routes import check_pixels, decode_fast
from xtuner_plugins.models.preprocessor import TilePreprocessor

WIDTH, HEIGHT = 133, 91
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
UNUSABLE = {"float.tiff", "float16.tiff", "float-rgb.tiff", "float.png", "wide.tiff", "signed.tiff"}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, pixels, bits=8, color=None, extra=b"", interlaced=False):
    """Any PNG of the specification, which Pillow writes only a few of; `pixels` are `[H, W]` or `[H, W, C]`."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape

    def lines(part):
        for line in part:
            if bits < 8:
                places = (line.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1
                yield b"\0" + np.packbits(places.astype(np.uint8).reshape(-1)).tobytes()
            else:
                yield b"\0" + line.astype(">u2" if bits == 16 else np.uint8).tobytes()

    parts = [pixels[y::down, x::right] for x, y, right, down in ADAM7] if interlaced else [pixels]
    data = b"".join(line for part in parts if part.size for line in lines(part))
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
    import tifffile

    image = Image.fromarray(photo)
    frames = [image.rotate(180), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for suffix in ("png", "gif", "webp"):
        image.save(folder / f"animated.{suffix}", save_all=True, append_images=frames)
    frames[0].save(folder / "animated-apart.png", save_all=True, append_images=[image, *frames], default_image=True)
    image.quantize(40).save(folder / "clear.gif", transparency=3)
    for suffix in ("webp", "tiff", "bmp", "ico", "tga"):
        Image.fromarray(np.dstack([photo, (alpha >> 8).astype(np.uint8)])).save(folder / f"alpha.{suffix}")
    for mode in ("1", "L", "P", "CMYK", "LA"):
        image.convert(mode).save(folder / f"{mode}.tiff")
    for name, options in {
        "420": {"subsampling": "4:2:0"},
        "422": {"subsampling": "4:2:2"},
        "444": {"subsampling": "4:4:4"},
        "rgb": {"keep_rgb": True},
        "progressive": {"progressive": True},
        "restart": {"restart_marker_rows": 1},
    }.items():
        image.save(folder / f"{name}.jpg", **options)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "gray.jpg")
    image.save(folder / "several.mpo", save_all=True, append_images=frames)
    (folder / "several.jpg").write_bytes((folder / "several.mpo").read_bytes())
    (folder / "deep.ppm").write_bytes(b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + deep.astype(">u2").tobytes())
    (folder / "deep.pgm").write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + deep[..., 0].astype(">u2").tobytes())
    gray = deep[..., 0]
    tifffile.imwrite(folder / "gray16.tiff", gray)
    tifffile.imwrite(folder / "rgb16.tiff", deep, photometric="rgb")
    tifffile.imwrite(folder / "float.tiff", (gray / 65535).astype(np.float32))
    tifffile.imwrite(folder / "float16.tiff", (gray / 65535).astype(np.float16))
    tifffile.imwrite(folder / "float-rgb.tiff", (deep / 65535).astype(np.float32), photometric="rgb")
    (folder / "float.png").write_bytes((folder / "float.tiff").read_bytes())
    tifffile.imwrite(folder / "wide.tiff", gray.astype(np.uint32) << 8)
    tifffile.imwrite(folder / "signed.tiff", (gray.astype(np.int32) - 32768).astype(np.int16))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    from skimage import data

    folder = tmp_path_factory.mktemp("kinds")
    photo = np.ascontiguousarray(data.astronaut()[:HEIGHT, 100 : 100 + WIDTH])
    noise = np.random.default_rng(0).integers(0, 257, photo.shape)  # low bytes that count
    deep = (photo.astype(np.int64) * 256 + noise).clip(0, 65535).astype(np.uint16)
    alpha = np.broadcast_to(np.linspace(0, 65535, WIDTH).astype(np.uint16), (HEIGHT, WIDTH))
    for interlaced in (False, True):
        write_pngs(folder, photo, deep, alpha, interlaced)
    write_others(folder, photo, deep, alpha)
    return folder


def scikit_images() -> list[Path]:
    """Every image file inside the installed scikit-image."""
    import skimage

    root = Path(skimage.__file__).parent
    suffixes = {".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp"}
    return sorted(path for path in root.rglob("*") if path.suffix in suffixes)


def sample_tiles(dataset, index):
    """`pixel_values` of a sample as the model gets them, or the reason of the complaint."""
    try:
        batch = collate([dataset[index]])
    except RecordError as error:
        return error.reason
    return TilePreprocessor()(batch)["pixel_values"]


def compare_routes(data_base, write_data, qa, paths, folder):
    """Through the dataset, collate and the preprocessor; returns the names that are complaints on every route."""
    path = write_data([qa("<image>", "One.", image=str(path.relative_to(folder))) for path in paths])
    options = {"max_tiles": 2, "cache_dir": str(Path(path).parent / "cache")}
    routes = {
        route: MultimodalDataset(data_base, path, str(folder), route=route, **options)
        for route in ("pillow", "torchvision")
    }
    refused = set()
    for index, file in enumerate(paths):
        expected, close = (sample_tiles(dataset, index) for dataset in routes.values())
        if isinstance(expected, str):
            assert close == expected, file
            refused.add(file.name)
            continue
        # a level of 255 is at most 0.018 after normalization; the sharpest edges differ by two
        assert close.shape == expected.shape and (close - expected).abs().max() < 0.04, file
        pixels = decode_fast(file, MAX_PIXELS)
        if pixels is not None:
            np.testing.assert_array_equal(pixels.numpy(), np.asarray(load_image(file)), str(file))
    return refused


def test_every_kind_is_the_same_on_every_route(data_base, write_data, qa, kinds):
    paths = sorted(kinds.iterdir())
    assert len(paths) > 80
    assert compare_routes(data_base, write_data, qa, paths, kinds) == UNUSABLE


def test_all_images_of_scikit_image_are_the_same_on_every_route(data_base, write_data, qa):
    paths = scikit_images()
    assert {"chessboard_RGB.png", "chessboard_GRAY.png"} <= {path.name for path in paths}
    folder = Path(paths[0].parents[len(paths[0].parts) - 2])
    refused = compare_routes(data_base, write_data, qa, paths, folder)
    assert refused <= {"multipage_rgb.tif"}  # three float planes per page


@pytest.mark.parametrize("bits", ["rgb16", "rgb16-interlaced", "rgb16-clear"])
def test_sixteen_bit_rgb_keeps_the_high_byte(kinds, bits):
    high = np.asarray(load_image(kinds / f"{bits}.png")).astype(int)
    eight = np.asarray(load_image(kinds / "rgb8.png")).astype(int)
    assert np.abs(high - eight).mean() < 1  # wrapped modulo 256 it would be noise


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(4, 4, 3, dtype=torch.uint16),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.zeros(4, 4, 1, dtype=torch.uint8),
        torch.zeros(4, 4, dtype=torch.uint8),
        torch.zeros(0, 4, 3, dtype=torch.uint8),
        torch.zeros(4, 4, 3),
        Image.new("RGBA", (4, 4)),
        Image.new("I;16", (4, 4)),
    ],
)
def test_the_door_refuses_what_is_no_uint8_rgb(pixels):
    with pytest.raises(MediaError) as caught:
        check_pixels(pixels, "a.png")
    assert caught.value.reason == "image_mode" and str(caught.value).startswith("a.png: ")
    check_pixels(torch.zeros(4, 4, 3, dtype=torch.uint8))
    check_pixels(Image.new("RGB", (4, 4)))


def test_a_decoder_that_gives_something_else_follows_the_bad_sample_policy(
    data_base, write_data, qa, make_image, monkeypatch
):
    """Not an error of the resize: the sample is left out with its reason, the run goes on."""
    folder = make_image("a.png")
    wrong = torch.zeros(120, 200, 3, dtype=torch.uint16)
    monkeypatch.setattr("xtuner_plugins.datasets.images.routes.decode_fast", lambda path, max_pixels: wrong)
    options = {"route": "torchvision", "on_bad_sample": "skip"}
    dataset = MultimodalDataset(data_base, write_data([qa(image="a.png")]), folder, **options)
    assert dataset[0]["dropped"] == "image_mode" and "a.png" in dataset[0]["message"]
