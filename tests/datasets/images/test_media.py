"""Images as the world has them."""

import errno
import io
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets.images import media
from xtuner_plugins.datasets.images.media import Blob, ImageFolder, load_image
from xtuner_plugins.errors import MediaError

PALETTE = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
PALETTE.putpalette([10, 20, 30, 40, 50, 60])
GRAY = Image.fromarray(np.array([[0, 257, 1413, 1414, 65535]], np.uint16))  # 5.498 and 5.502 times 257
CLEAR = Image.fromarray(np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], np.uint8))
RED, BLUE = (Image.new("RGB", (2, 1), color) for color in ("red", "blue"))
PIXELS = [  # image, options of its file, its first row: transparency on white, 16 bits scaled, the first frame
    (CLEAR, {}, [[200, 0, 0], [255, 255, 255]]),
    (PALETTE, {"transparency": 1}, [[10, 20, 30], [255, 255, 255]]),
    (GRAY, {}, [[level] * 3 for level in (0, 1, 5, 6, 255)]),
    (RED, {"save_all": True, "append_images": [BLUE]}, [[255, 0, 0]] * 2),
]


def test_every_mode_becomes_rgb(tmp_path):
    for image, options, expected in PIXELS:
        image.save(tmp_path / "a.png", **options)
        assert np.asarray(load_image(tmp_path / "a.png"))[0].tolist() == expected


def test_what_is_no_image_is_said(monkeypatch):
    RED.save(damaged := io.BytesIO(), "JPEG", exif=b"Exif\0\0damaged")  # which counts as upright
    assert media.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS  # beyond which Pillow refuses, too
    monkeypatch.setattr(media, "MAX_PIXELS", 2)
    assert load_image(Blob("a.jpg", damaged.getvalue())).size == (2, 1)
    RED.save(eps := io.BytesIO(), "EPS")  # for which Pillow would start Ghostscript
    wrong = {b"": "an empty file", b"GIF89a broken": "(?!.*0x)", eps.getvalue(): "it begins as no known image does\\)"}
    wrong = {data: f"{problem}.*fetch the image again, or leave it .*out$" for data, problem in wrong.items()}
    wrong[b"\0\0\0\x18ftypheic" + bytes(40)] = r"it is HEIC\); convert it to JPEG$"
    for data, problem in wrong.items():
        with pytest.raises(MediaError, match=rf"^x.tar/a.png: can't be decoded \({problem}"):
            load_image(Blob("x.tar/a.png", data))
    with mock.patch.object(Image, "open", side_effect=OSError(errno.EMFILE, "Too many open files")):
        with pytest.raises(MediaError, match=r"^x.tar/a.png: .* as many files open as it may .*ulimit -n"):
            load_image(Blob("x.tar/a.png", b""))


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
