import io
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from xtuner_plugins.datasets.audit import looks
from xtuner_plugins.datasets.audit.looks import KnownImages, look_at, stamp_of
from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.images.media import MAX_PIXELS, Blob, load_image, load_reduced


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


def coded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Blob("image", buffer.getvalue())


def opened(source, max_pixels=10**7):
    return KnownImages().open(source, max_pixels)[1]


def test_a_reduced_image_has_the_look_and_size_of_the_whole():
    photo, exif = photograph().resize((2000, 1100)), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for options in ({}, {"progressive": True}, {"exif": exif}):
        source = coded(photo, quality=80, **options)
        whole = load_image(source)
        reduced, size, _ = load_reduced(source, 10**7, looks.REDUCED)
        assert min(reduced.size) == 275 and size == whole.size  # a quarter; an eighth would be too small
        assert opened(source)[:2] == whole.size
        assert differing(opened(source)[3:], look_at(whole)[3:]) <= 5
    assert opened(coded(photo, "PNG")) == look_at(photo)


def test_equal_pixels_are_equal_pixels_of_the_whole_image():
    # Stripes whose frequency a reduced image doesn't have, in two phases.
    stripes = np.tile(np.array([255, 0, 0, 255], np.uint8)[:, None].repeat(3, 1), (960, 240, 1))
    one, other = (coded(Image.fromarray(pixels), quality=95) for pixels in (stripes, 255 - stripes))
    reduced = [load_reduced(source, 10**7, looks.REDUCED)[0].tobytes() for source in (one, other)]
    assert reduced[0] == reduced[1] and opened(one).pixels != opened(other).pixels
    exif = Image.Exif()
    exif[0x0112] = 3
    photo = photograph()
    plain, described, turned = (
        coded(photo),
        coded(photo, comment=b"by me", icc_profile=b"x" * 200),
        coded(photo, exif=exif),
    )
    assert opened(plain).pixels == opened(described).pixels != opened(turned).pixels
    coarser = bytearray(plain.data)
    coarser[coarser.index(b"\xff\xdb") + 5] += 1  # the first value of a quantization table
    assert opened(plain).pixels != opened(Blob("image", bytes(coarser))).pixels
    assert opened(coded(photo, "PNG")).pixels == opened(coded(photo, "BMP")).pixels == look_at(photo).pixels


def test_a_damaged_image_is_refused_as_training_refuses_it():
    random, photo = Random(0), photograph().resize((320, 280))
    files = [coded(photo, **options).data for options in ({}, {"progressive": True}, {"restart_marker_blocks": 4})]
    files += [coded(photo.convert("CMYK")).data, coded(photo, "PNG").data]
    verdicts = Counter()
    for number in range(400):
        data = bytearray(random.choice(files))
        if number % 3:
            for _ in range(random.choice((1, 2, 5))):
                data[random.randrange(random.choice((700, len(data))))] = random.choice((0, 255, random.randrange(256)))
        else:
            del data[random.randrange(len(data)) :]
        found = []
        for load in (lambda blob: load_image(blob).size, lambda blob: load_reduced(blob, MAX_PIXELS, 100)[1]):
            try:
                found.append(load(Blob("image", bytes(data))))
            except MediaError as error:
                found.append(str(error))
        assert found[0] == found[1]
        verdicts[type(found[0])] += 1
    assert min(verdicts[str], verdicts[tuple]) > 100


def test_known_images_are_decoded_once_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "MOST_KNOWN", 2)
    loaded, real = [], looks.load_reduced
    monkeypatch.setattr(looks, "load_reduced", lambda source, *more: loaded.append(source) or real(source, *more))
    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    for path in paths:
        Image.new("RGB", (20, 30)).save(path)
    known = KnownImages()
    for number in (0, 0, 1, 2, 2, 1, 0):  # the first is forgotten when the third comes
        stamp, facts = known.open(paths[number], 1000)
        assert facts[:2] == (20, 30) and stamp == stamp_of(paths[number])
    assert [paths.index(path) for path in loaded] == [0, 1, 2, 0]
    blob = Blob("a.tar/b.png", (tmp_path / "a.png").read_bytes())
    assert known.open(blob, 1000) == known.open(blob, 1000) == (None, facts) and loaded[-2:] == [blob, blob]
    with pytest.raises(MediaError, match="600 pixels|20x30"):
        KnownImages().open(paths[0], 599)
