"""Images as the world has them."""

import io

import numpy as np
import pillow_heif
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


def test_orientation_is_applied_once_to_files_and_bytes(tmp_path):
    path = tmp_path / "a.png"
    for tag, stored in enumerate(STORED, 1):
        image = Image.fromarray(np.ascontiguousarray(stored))
        exif = image.getexif()
        exif[0x0112] = tag
        image.save(path, exif=exif)
        for source in (path, Blob("x.tar/a.png", path.read_bytes())):
            np.testing.assert_array_equal(np.asarray(load_image(source)), UPRIGHT)
            assert image_size(source) == (10, 6)
        load_image(path).save(path)
        np.testing.assert_array_equal(np.asarray(load_image(path)), UPRIGHT)


PALETTE = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
PALETTE.putpalette([10, 20, 30, 40, 50, 60])
GRAY = Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16))
CLEAR = Image.fromarray(np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], np.uint8))
RED, BLUE = (Image.new("RGB", (2, 1), color) for color in ("red", "blue"))
PIXELS = [  # image, options of its file, its first row: transparency on white, 16 bits scaled, the first frame
    (CLEAR, {}, [[200, 0, 0], [255, 255, 255]]),
    (PALETTE, {"transparency": 1}, [[10, 20, 30], [255, 255, 255]]),
    (GRAY, {}, [[level] * 3 for level in (0, 1, 128, 255)]),
    (RED, {"save_all": True, "append_images": [BLUE]}, [[255, 0, 0]] * 2),
]


def test_every_mode_becomes_rgb(tmp_path):
    for image, options, expected in PIXELS:
        image.save(tmp_path / "a.png", **options)
        assert np.asarray(load_image(tmp_path / "a.png"))[0].tolist() == expected


def test_heic_is_read_where_its_plugin_is_and_an_error_names_it(tmp_path, monkeypatch):
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(path := tmp_path / "a.heic")
    blob = Blob("x.tar/a.heic", path.read_bytes())
    assert load_image(path).size == image_size(blob) == (64, 48)
    monkeypatch.setattr(media, "_formats", lambda: media.FORMATS)
    for source in (path, blob):
        with pytest.raises(MediaError, match="a.heic: can't be decoded .*no known image does; HEIC needs pip install"):
            image_size(source)
    Image.fromarray(UPRIGHT).save(eps := io.BytesIO(), "EPS")  # for which Pillow would start Ghostscript
    wrong = {b"": "an empty file", b"GIF89a broken": "(?!.*0x)", eps.getvalue(): "it begins as no known image does"}
    for data, problem in wrong.items():
        with pytest.raises(MediaError, match=rf"^x.tar/a.png: can't be decoded \({problem}.*fetch the image again"):
            load_image(Blob("x.tar/a.png", data))


def test_names_stay_inside_their_folder_whatever_links_and_windows_say(tmp_path):
    inside, outside = tmp_path / "images", tmp_path / "images2"  # whose name begins alike
    (inside / "a").mkdir(parents=True)
    outside.mkdir()
    (inside / "linked").symlink_to(outside)
    (inside / "a" / "out.png").symlink_to(outside / "b.png")
    (inside / "a" / "in.png").symlink_to("b.png")
    (inside / "a\\c.png").touch()
    folder, anywhere = ImageFolder(inside), ImageFolder(None, inside)
    assert folder.resolve(blob := Blob("a", b"")) is blob and anywhere.resolve("/abs/a.png") == "/abs/a.png"
    for name in ("a/b.png", "a/in.png", "a/none.png", "a", "a\\b.png", "a\\c.png"):  # the last one's very name
        expected = str(inside / name.replace("a\\b", "a/b"))
        assert folder.resolve(name) == anywhere.resolve(name) == expected
    (inside / "a").rename(inside / "old")
    (inside / "a").symlink_to(outside)  # what has been found isn't remembered
    for name in ("a/b.png", "linked/none.png", "old/out.png", "linked", "linked/", "linked/.", "."):
        with pytest.raises(MediaError, match="link out"):
            folder.resolve(name)
    for name in ("..\\a.png", "deep\\..\\..\\a.png", "\\a.png"):
        with pytest.raises(MediaError, match="leaves|absolute"):
            folder.resolve(name)
