"""Boxes of an answer are drawn where they are, and what isn't a box is passed over."""

from PIL import Image, ImageColor

from xtuner_plugins.inference.drawing import COLOR, answer_boxes, with_boxes


def test_boxes():
    """Decoding drops the tags where they are special tokens; what a model gets wrong is drawn as far as it can be."""
    image = Image.new("RGB", (200, 100))
    drawn = with_boxes(image, "<ref>the bus</ref><box>[[250, 200, 750, 800]]</box>")
    outline = drawn.convert("L").point(bool).getbbox()
    assert all(abs(found - at) <= 1 for found, at in zip(outline, (50, 20, 150, 80), strict=True)), outline
    assert drawn.getpixel((50, 50)) == ImageColor.getrgb(COLOR) and not any(drawn.getpixel((100, 50)))
    for frame in ("0, 0, 1000, 1000", "-50, 0, 5000, 1e300"):
        edges = with_boxes(image, f"[[{frame}]]" if frame[0] == "0" else f"<box>[[{frame}]]</box>")
        middles = {edges.getpixel(place) for place in ((100, 0), (100, 99), (0, 50), (199, 50))}
        assert middles == {ImageColor.getrgb(COLOR)}
    for text in ("A bus.", "<box>none</box>", "<box>[[1, 2, 3]]</box>", "[1, 2] [[1, 2]] [[a]]"):
        assert with_boxes(image, text) is None
    for text, boxes in (
        ("it[[1000, 200, 100, 1200]]", [(1000, 200, 100, 1200)]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]] and [ [.5,0,1,1] ]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("<box>[[1, 2, 3, 4]]</box> of [[5, 6, 7, 8]]", [(1, 2, 3, 4)]),
        ("[[1, " * 20_000 + "[" * 20_000, []),  # takes no time
    ):
        assert answer_boxes(text) == boxes
    for numbers in ("900, 900, 100, 100", "NaN, 0, 10, 10", f"0, 0, 9, {10**400}"):
        with_boxes(image, f"<box>[[{numbers}]]</box>")
    assert image.getcolors() == [(20000, (0, 0, 0))]  # the image itself stays as it was
