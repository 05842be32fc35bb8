"""What visitors send is checked before it is decoded, and cut as in training."""

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.serving.demo_media import Limits, Medium, cut_media, question_text, read_media

LIMITS = Limits(max_bytes=1 << 20, max_pixels=10_000)
STILL = Medium("a.png", (Image.new("RGB", (96, 64)),), False)
VIDEO = Medium("v.mp4", (Image.new("RGB", (96, 64)),) * 2, True)


def refusal(path):
    with pytest.raises(MediaError) as caught:
        read_media([str(path)], LIMITS, 2)
    return str(caught.value)


def test_an_image(tmp_path):
    Image.new("RGBA", (40, 30)).save(tmp_path / "a.png")
    (medium,) = read_media([str(tmp_path / "a.png")], LIMITS, 2)
    assert (medium.name, medium.images[0].mode, medium.images[0].size) == ("a.png", "RGB", (40, 30))


def test_bad_files_are_refused_by_name(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("hello")
    assert "a.png" in refusal(path) and "no image; send one of" in refusal(path) and str(tmp_path) not in refusal(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "can't be decoded" in refusal(path) and "record" not in refusal(path)
    path.unlink()
    assert "no longer here" in refusal(path)
    path.with_suffix(".mp4").write_text("hello")
    assert "can't be decoded" in refusal(path.with_suffix(".mp4"))
    path.with_suffix(".eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "no image; send one of" in refusal(path.with_suffix(".eps"))


def test_limits_come_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (101, 100)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    assert "101x100 pixels" in refusal(path)
    with path.open("ab") as file:
        file.truncate(200 << 20)
    assert "200 MB" in refusal(path)
    with pytest.raises(MediaError, match="17 files"):
        read_media([str(path)] * 17, LIMITS, 2)


def test_frames_are_numbered_and_get_one_tile():
    assert question_text("Why?", [STILL]) == "<image>\nWhy?"
    assert question_text("Why?", [STILL, VIDEO]) == "<image>\nFrame-1: <image>\nFrame-2: <image>\nWhy?"
    with pytest.raises(ValueError, match="2 <image> for 1 images"):
        question_text("<image> <image>", [STILL])
    tiling = DynamicTiling(max_tiles=6, tile_size=16)
    assert [len(tiles) for tiles in cut_media([STILL, VIDEO], tiling, "equal")] == [7, 1, 1]
    assert [len(tiles) for tiles in cut_media([STILL, STILL], tiling, "equal")] == [3, 3]
