"""Boxes as InternVL's script reads them (OpenGVLab/InternVL, internvl_chat/eval/refcoco/evaluate_grounding.py)."""

import pytest

from xtuner_plugins.datasets.errors import RecordError
from xtuner_plugins.evaluation.metrics.iou import Iou, find_box, overlap

HALF = (0.1, 0.2, 0.5, 0.6)


@pytest.mark.parametrize(
    "text, frame",
    [
        ("<ref>the bus</ref><box>[[100, 200, 500, 600]]</box>", None),
        ("[[100, 200, 500, 600]]", None),  # the tags are special tokens, which decoding drops
        ("It is at [100,200,500,600].", None),
        ("<box>(100,200),(500,600)</box>", None),
        ("(100,200),(500,600)", None),
        ("[0.1, .2, 0.5, 0.6]", None),
        ("[200, 200, 1000, 600]", "pixel"),
        ("[[100, 200, 500, 600]] or [[0, 0, 1, 1]]", None),  # the first counts
    ],
)
def test_phrasings_of_a_box(text, frame):
    assert find_box(text, (2000, 1000), frame) == pytest.approx(HALF)


def test_numbers_above_the_frame_are_pixels():
    assert find_box("[200, 200, 1002, 600]", (2000, 1000)) == pytest.approx((0.1, 0.2, 0.501, 0.6))
    assert find_box("[200, 200, 1002, 600]", None) is None


LONG = "[" + ", ".join(["1" * 300] * 4) + " x"  # what a model in a loop may write


@pytest.mark.parametrize(
    "text", ["", "no box", "[1, 2, 3]", "[1, 2, 3, 4", "[a, b, c, d]", "[" * 3000, "[1" * 3000, LONG]
)
def test_no_box(text):
    assert find_box(text, None) is None


@pytest.mark.parametrize(
    "other, iou",
    [
        (HALF, 1.0),
        ((0.1, 0.2, 0.3, 0.6), 0.5),
        ((0.3, 0.4, 0.7, 0.8), 1 / 7),  # a quarter of each: 1 / (4 + 4 - 1)
        ((0.5, 0.6, 0.9, 0.9), 0.0),  # touches
        ((0.5, 0.6, 0.1, 0.2), 0.0),  # inverted
    ],
)
def test_overlap(other, iou):
    assert overlap(HALF, other) == pytest.approx(iou)


def test_half_is_enough(make_item):
    items = [make_item("[200, 200, 1000, 600]", frame="pixel", width=2000, height=1000) for _ in range(4)]
    for item in items:
        Iou().check(item)
    figures = Iou().figures(["[[100, 200, 300, 600]]", "[[100,200,299,600]]", "[0.1,0.2,0.5,0.6]", "?"], items)
    assert figures["accuracy"] == 50 and figures["unclear"] == 25
    assert figures["mean_iou"] == pytest.approx(100 * (0.5 + 0.4975 + 1) / 4)


def test_the_frame_of_answers_can_be_said(make_item):
    item = make_item("<box>[[100, 200, 500, 600]]</box>", width=100, height=100, answer_frame="pixel")
    assert Iou().score("[10, 20, 50, 60]", item)
    assert not Iou().score("[10, 20, 50, 60]", make_item("<box>[[100, 200, 500, 600]]</box>"))


@pytest.mark.parametrize(
    "expected, facts, message",
    [
        ("the bus", {}, "the answer 'the bus' is no box"),
        ("[1, 2, 3, 4]", {"frame": "pixel"}, "no size of the image; give 'width' and 'height'"),
        ("[1, 2, 3, 4]", {"width": "640", "height": 480}, "the size of the image is '640' x 480"),
        ("[1, 2, 3, 4]", {"width": 0, "height": 480}, "the size of the image is 0 x 480"),
        ("[1, 2, 3, 4]", {"width": 640}, "the size of the image is 640 x None"),
        ("[1, 2, 3, 4]", {"frame": "pixels"}, "frame 'pixels'; it is one of 0-1000, fraction, pixel"),
        ("<box>[[5, 5, 5, 9]]</box>", {}, "has no area"),
    ],
)
def test_refused(expected, facts, message, make_item):
    with pytest.raises(RecordError, match=message):
        Iou().check(make_item(expected, **facts))
