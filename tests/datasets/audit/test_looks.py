import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from xtuner_plugins.datasets.audit import looks
from xtuner_plugins.datasets.audit.looks import KnownImages, look_at, stamp_of
from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.images.media import Blob


def differing(one, other):
    return sum((left ^ right).bit_count() for left, right in zip(one, other, strict=True))


def look(image):
    return look_at(image)[3:5]


def photograph():
    import skimage.data

    return Image.fromarray(skimage.data.astronaut())


def test_copies_look_alike_and_others_do_not():
    image = photograph()
    buffer = io.BytesIO()
    image.resize((333, 333)).save(buffer, "JPEG", quality=40)
    assert differing(look(image), look(Image.open(buffer))) <= 5
    assert differing(look(image), look(ImageEnhance.Brightness(image).enhance(0.8))) <= 5
    assert differing(look(image), look(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) > 30


def test_the_mirrored_look_is_that_of_the_mirrored_image():
    image = photograph()
    assert differing(look_at(image)[5:], look(ImageOps.mirror(image))) <= 5


def test_pixels_and_size_are_told_apart():
    one, other = (Image.fromarray(np.zeros(shape, np.uint8)) for shape in ((4, 6, 3), (6, 4, 3)))
    assert look_at(one).pixels == look_at(one.copy()).pixels != look_at(other).pixels
    assert look_at(one)[:2] == (6, 4)


def test_known_images_are_decoded_once_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "MOST_KNOWN", 2)
    opened, real = [], looks.load_image
    monkeypatch.setattr(looks, "load_image", lambda source, *more: opened.append(source) or real(source, *more))
    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    for path in paths:
        Image.new("RGB", (20, 30)).save(path)
    known = KnownImages()
    for number in (0, 0, 1, 2, 2, 1, 0):  # the first is forgotten when the third comes
        stamp, facts = known.open(paths[number], 1000)
        assert facts[:2] == (20, 30) and stamp == stamp_of(paths[number])
    assert [paths.index(path) for path in opened] == [0, 1, 2, 0]
    blob = Blob("a.tar/b.png", (tmp_path / "a.png").read_bytes())
    assert known.open(blob, 1000) == known.open(blob, 1000) == (None, facts) and opened[-2:] == [blob, blob]
    with pytest.raises(MediaError, match="600 pixels|20x30"):
        KnownImages().open(paths[0], 599)
