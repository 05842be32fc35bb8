"""Boxes: pixels become the 0-1000 frame, boxes already in it are checked."""

import pytest

from xtuner_plugins.audit.check import check_dataset
from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.records.boxes import (
    check_stated_sizes,
    compare_size,
    find_boxes,
    normalize_boxes,
    stated_sizes,
)
from xtuner_plugins.datasets.records.records import parse_record


def boxed(answer, **extra):
    raw = {
        "image": "a.jpg",
        "boxes": "pixel",
        "width": 640,
        "height": 480,
        "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": answer}],
        **extra,
    }
    return parse_record(raw, "f:3")


def test_pixel_boxes_enter_the_frame():
    record = normalize_boxes(boxed("<ref>bus</ref><box>[[64, 48, 320, 240]]</box> and <box>[0,0,640,480]</box>"))
    assert record.turns[1].text == (
        "<ref>bus</ref><box>[[100, 100, 500, 500]]</box> and <box>[[0, 0, 1000, 1000]]</box>"
    )
    assert find_boxes(record.turns[1].text) == [(100, 100, 500, 500), (0, 0, 1000, 1000)]
    plain = parse_record(
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<box>[[1, 2, 3, 4]]</box>"}]},
        "f:1",
    )
    assert normalize_boxes(plain) is plain


def test_boxes_are_checked_against_the_image():
    with pytest.raises(RecordError, match="f:3: the record says 640x480, the image is 480x640"):
        normalize_boxes(boxed("<box>[[1, 2, 3, 4]]</box>"), lambda place: (480, 640))
    with pytest.raises(RecordError, match="f:3: the box .* leaves the image of 640x480"):
        normalize_boxes(boxed("<box>[[1, 2, 3, 481]]</box>"))


def test_sizes_that_lie_are_a_warning(make_image, data_base, write_data, qa):
    folder = make_image("a.png", 100, 90)
    path = write_data([qa(image="a.png", width=90, height=100), qa(image="a.png", width=100, height=90)])
    said = []
    dataset = MultimodalDataset(data_base, path, folder, cache_dir=path + ".cache")
    (report,) = check_dataset(dataset, num_workers=0, say=lambda trouble: said.append(trouble.message))
    assert report.warnings == {"image_size": 1} and not report.complaints
    assert said[0].startswith(f"{path}:1: the record says 90x100, the image is 100x90")
    assert compare_size(boxed("No size.", width=None), (5, 5)) is None


@pytest.mark.parametrize(
    "answer, extra, words",
    [
        ("<box>[[1, 2, 3]]</box>", {}, "is no box"),
        ("<box>here</box>", {}, "is no box"),
        ("<box>[[1, 2, 3, 4]]", {}, "a box isn't closed"),
        ("<box>[[3, 2, 1, 4]]</box>", {}, "leaves the image of 640x480"),
        ("<box>[[1, 2, 3, 4]]</box>", {"boxes": "relative"}, "'boxes' is 'relative'"),
        ("<box>[[1, 2, 3, 4]]</box>", {"width": None}, "in an image of None x 480"),
        ("<box>[[1, 2, 3, 4]]</box>", {"image": None}, "pixel boxes with 0 images"),
        ("<box>[[1, 2, 3, 1001]]</box>", {"boxes": "normalized"}, "within 0 to 1000"),
        ("<box>[[3, 2, 1, 4]]</box>", {"boxes": None}, "within 0 to 1000"),
    ],
)
def test_wrong_boxes_are_errors(answer, extra, words):
    with pytest.raises(RecordError, match=f"^f:3: .*{words}") as caught:
        normalize_boxes(boxed(answer, **extra))
    assert caught.value.reason == "boxes" and caught.value.remedy


@pytest.mark.parametrize(
    "answer, words",
    [
        ("<box>[[0.1, 0.2, 0.3, 0.4]]</box>", "in fractions"),
        ("<box>a crate</box>", "is no box"),
        ("<ref>it", "1 <ref> and 0 </ref>"),
    ],
)
def test_doubtful_boxes_in_the_frame_are_warnings(answer, words):
    record = boxed(answer, boxes="normalized")
    (warning,) = normalize_boxes(record).warnings
    assert words in str(warning) and warning.reason == "grounding" and warning.place == "f:3"
    assert normalize_boxes(record).turns == record.turns


def test_what_is_no_box_is_not_found():
    assert find_boxes("<box>[[1, 2, 3]]</box> <box>x</box> <box>{}</box> <box>[1, 2, 3, 4]</box>") == [(1, 2, 3, 4)]


@pytest.mark.parametrize(
    "extra, sizes",
    [
        ({}, [(640, 480)]),
        ({"width": [640], "height": [480]}, [(640, 480)]),
        ({"image": ["a.jpg", "b.jpg"], "width": [640, 5], "height": [480, 9]}, [(640, 480), (5, 9)]),
        ({"image": ["a.jpg", "b.jpg"]}, None),
        ({"width": None}, None),
        ({"width": 0}, None),
        ({"width": True}, None),
        ({"width": "640"}, None),
        ({"width": 640.0}, None),
        ({"image": None, "video": "a.mp4"}, None),
    ],
)
def test_stated_sizes_are_one_for_each_image(extra, sizes):
    question = "<video>" if "video" in extra else "<image>" * len(extra.get("image", "a") or "")
    raw = {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "It."}]}
    record = parse_record({"image": "a.jpg", "width": 640, "height": 480, **raw, **extra}, "f:3")
    assert stated_sizes(record) == sizes
    if sizes:
        check_stated_sizes(record, sizes.__getitem__)
        turned = [size[::-1] for size in sizes]
        with pytest.raises(RecordError, match="f:3: the record says 640x480, but image 1 is 480x640; correct"):
            check_stated_sizes(record, turned.__getitem__)
