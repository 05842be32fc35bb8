"""Images as the world has them."""

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets.images import media
from xtuner_plugins.datasets.images.media import Blob, ImageFolder, image_size, load_image
from xtuner_plugins.errors import MediaError

UPRIGHT = np.zeros((6, 10, 3), np.uint8)
UPRIGHT[:3, :5] = (255, 0, 0)
UPRIGHT[3:, 5:] = (0, 0, 255)


# By EXIF orientation, from 1 on
STORED = [UPRIGHT, UPRIGHT[:, ::-1], UPRIGHT[::-1, ::-1], UPRIGHT[::-1], UPRIGHT.swapaxes(0, 1)]
STORED += [np.rot90(UPRIGHT), np.rot90(UPRIGHT, 2).swapaxes(0, 1), np.rot90(UPRIGHT, -1)]


def test_orientation_is_applied_once(tmp_path):
    for tag, stored in enumerate(STORED, 1):
        image = Image.fromarray(np.ascontiguousarray(stored))
        exif = image.getexif()
        exif[0x0112] = tag
        image.save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), UPRIGHT)
        assert image_size(tmp_path / "a.png") == (10, 6)
        load_image(tmp_path / "a.png").save(tmp_path / "again.png")
        np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "again.png")), UPRIGHT)


def palette(clear):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((clear, 0), clear)
    return image


GRAY, CLEAR = (
    np.array([[0, 257, 128 * 257, 65535]], np.uint16),
    np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], np.uint8),
)
RED, BLUE = (Image.new("RGB", (2, 1), color) for color in ("red", "blue"))
PIXELS = [  # image, options of its file, its first row: transparency on white, 16 bits scaled, the first frame
    (Image.fromarray(CLEAR), {}, [[200, 0, 0], [255, 255, 255]]),
    (palette(1), {"transparency": 1}, [[10, 20, 30], [255, 255, 255]]),
    (Image.fromarray(GRAY), {}, [[level] * 3 for level in (0, 1, 128, 255)]),
    (RED, {"save_all": True, "append_images": [BLUE]}, [[255, 0, 0]] * 2),
]
MODES = "1.png L.png LA.png P.png P.gif CMYK.jpg YCbCr.jpg L.jpg RGB.webp RGB.bmp RGB.tiff RGBA.webp"


def test_every_mode_becomes_rgb(tmp_path):
    for image, options, expected in PIXELS:
        image.save(tmp_path / "a.png", **options)
        assert np.asarray(load_image(tmp_path / "a.png"))[0].tolist() == expected
    for name in MODES.split():
        mode, image = name.partition(".")[0], Image.fromarray(np.full((8, 8, 3), 120, np.uint8))
        (image.quantize(4) if mode == "P" else image.convert(mode)).save(tmp_path / name)
        loaded = load_image(tmp_path / name)
        assert loaded.mode == "RGB" and loaded.size == (8, 8)
        assert mode == "1" or np.abs(np.asarray(loaded).astype(int) - 120).max() <= 3, name


def test_formats_with_dangerous_or_rare_decoders_are_not_tried(tmp_path):
    """Whatever the name says; Pillow would start Ghostscript for EPS."""
    for kind in ("EPS", "PDF", "SGI"):
        Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", kind)
        for source in (tmp_path / "a.jpg", Blob("a.jpg", (tmp_path / "a.jpg").read_bytes())):
            with pytest.raises(MediaError, match="it begins as no known image does"):
                load_image(source)


def test_names_of_windows_and_images_in_records(tmp_path):
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "deep" / "a.png")
    for folder in (ImageFolder(tmp_path), ImageFolder(None, tmp_path)):
        assert load_image(folder.resolve("deep\\a.png")).size == load_image(folder.resolve("deep/a.png")).size
        assert folder.resolve(blob := Blob("a", b"")) is blob
    images = ImageFolder(None, tmp_path)
    assert images.resolve("/abs/a.png") == "/abs/a.png" and images.resolve("a.png") == f"{tmp_path}/a.png"
    (tmp_path / "a\\b.png").touch()
    assert ImageFolder(tmp_path).resolve("a\\b.png").endswith("a\\b.png")  # it has that very name
    for name in ("..\\a.png", "deep\\..\\..\\a.png", "\\a.png"):
        with pytest.raises(MediaError, match="leaves|absolute"):
            ImageFolder(tmp_path).resolve(name)


def test_images_in_memory_are_those_of_files(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (5, 4), "red").save(path)
    blob = Blob("x.tar/a.png", path.read_bytes())
    assert np.array_equal(load_image(blob), load_image(path)) and image_size(blob) == image_size(path)
    unknown = r"can't be decoded \(it begins as no known image does(; HEIC needs [^)]*)?\); fetch"
    empty = r"can't be decoded \(an empty file\); fetch"
    for data, problem in ((b"", empty), (b"GIF89a broken", "can't be decoded"), (b"<html>", unknown)):
        with pytest.raises(MediaError, match=f"^x.tar/a.png: {problem}") as caught:
            load_image(Blob("x.tar/a.png", data))
        assert "0x" not in str(caught.value)


def test_heic_needs_a_plugin_which_the_error_names(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is optional")
    path = tmp_path / "a.heic"
    heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(path)
    with monkeypatch.context() as without:
        without.setattr(media, "_formats", lambda: media.FORMATS)
        for source in (path, Blob("x.tar/a.heic", path.read_bytes())):
            with pytest.raises(MediaError, match="HEIC needs pip install pillow-heif"):
                image_size(source)
    for source in (path, Blob("x.tar/a.heic", path.read_bytes())):
        assert load_image(source).size == image_size(source) == (64, 48)
    with pytest.raises(MediaError, match=r"no known image does\)"):
        image_size(Blob("a.png", b"no image"))
    with pytest.raises(MediaError, match="^cut: can't be decoded"):
        load_image(Blob("cut", path.read_bytes()[:200]))


def test_links_are_followed_before_a_path_counts_as_inside(tmp_path):
    inside, outside = tmp_path / "images", tmp_path / "images2"  # whose name begins alike
    (inside / "a").mkdir(parents=True)
    outside.mkdir()
    (inside / "linked").symlink_to(outside)
    (inside / "a" / "out.png").symlink_to(outside / "b.png")
    (inside / "a" / "in.png").symlink_to("b.png")
    folder = ImageFolder(inside)
    for name in ("a/b.png", "a/in.png", "a/none.png", "a"):
        assert folder.resolve(name) == str(inside / name)
    (inside / "a").rename(inside / "old")
    (inside / "a").symlink_to(outside)  # what has been found isn't remembered
    for name in ("a/b.png", "linked/none.png", "old/out.png", "linked", "linked/", "linked/.", "."):
        with pytest.raises(MediaError, match="link out"):
            folder.resolve(name)
