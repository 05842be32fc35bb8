"""Boxes: pixels become the 0-1000 frame, boxes already in it are checked, ms-swift's are filled in."""

import json

import pytest

from xtuner_plugins.audit.check import check_dataset
from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.records.boxes import compare_size, find_boxes, normalize_boxes
from xtuner_plugins.datasets.records.pairs import parse_pair
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
    with pytest.raises(RecordError, match="f:3: the box .* within 640x480"):
        normalize_boxes(boxed("<box>[[1, 2, 3, 481]]</box>"))


def test_sizes_that_lie_are_a_warning(make_image, data_base, write_data, qa):
    folder = make_image("a.png", 100, 90)
    path = write_data([qa(image="a.png", width=90, height=100), qa(image="a.png", width=100, height=90)])
    said = []
    dataset = MultimodalDataset(data_base, path, folder)
    (report,) = check_dataset(dataset, num_workers=0, say=lambda report, each: said.append(report.message(each)))
    assert report.warnings == {"image_size": 1} and not report.complaints
    assert said[0].startswith(f"{path}:1: the record says 90x100, the image is 100x90")
    assert compare_size(boxed("No size.", width=None), (5, 5)) is None


@pytest.mark.parametrize(
    "answer, extra, words",
    [
        ("<box>[[1, 2, 3]]</box>", {}, "is no box"),
        ("<box>here</box>", {}, "is no box"),
        ("<box>[[1, 2, 3, 4]]", {}, "a box isn't closed"),
        ("<box>[[3, 2, 1, 4]]</box>", {}, "within 640x480"),
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


SIZES = [(640, 480), (100, 200)]


def grounded(answer, question="<image>Where is <ref-object>?", images=("a.jpg",), objects=None, **rest):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    objects = {"ref": ["the bus"], "bbox": [[64, 48, 320, 240]], **(objects or {})}
    return parse_record({"images": list(images), "objects": objects, "messages": messages, **rest}, "f:3")


def filled(*args, **settings):
    record = normalize_boxes(grounded(*args, **settings), SIZES.__getitem__)
    return [turn.text for turn in record.turns], [warning.reason for warning in record.warnings]


def test_names_and_boxes_are_filled_in_reading_order():
    assert filled("At <bbox>.") == (
        ["Where is <ref>the bus</ref>?", "At <box>[[100, 100, 500, 500]]</box>."],
        [],
    )
    two = {"ref": ["a", "b"], "bbox": [[0, 0, 640, 480], [1, 2, 1.5, 2]]}
    texts, warnings = filled("<bbox> <ref-object> <bbox>", objects=two)
    assert texts[1] == "<box>[[0, 0, 1000, 1000]]</box> <ref>b</ref> <box>[[2, 4, 2, 4]]</box>" and not warnings


def test_fractions_points_and_other_images():
    assert filled("<bbox>", objects={"bbox": [[0.1, 0.25, 0.5, 1]], "bbox_type": "norm1"})[0][1] == (
        "<box>[[100, 250, 500, 1000]]</box>"
    )
    assert filled("<bbox>", objects={"bbox": [[320, 240]]})[0][1] == "<box>[[500, 500]]</box>"
    both = {"bbox": [[50, 100, 100, 200], [64, 48, 320, 240]], "image_id": [1]}  # the second is the first image's
    texts, _ = filled("<bbox><bbox>", "<image><image><ref-object>", images=("a.jpg", "b.jpg"), objects=both)
    assert texts[1] == "<box>[[500, 500, 1000, 1000]]</box><box>[[100, 100, 500, 500]]</box>"


def as_release_2(**settings):
    """The record of `grounded` as ms-swift 2 writes it."""
    objects = [
        {"caption": "the bus", "bbox": [64, 48, 320, 240], "bbox_type": "real", "image": 0},
        {"caption": "two", "bbox": [[0, 0, 50, 100], [50, 100, 100, 200]], "bbox_type": "real", "image": 1},
        {"caption": "half", "bbox": [0, 250, 500, 1000], "bbox_type": "norm_1000", "image": 0},
        {"caption": "quarter", "bbox": [0, 0.25, 0.5, 1], "bbox_type": "norm_1"},
    ]
    raw = {"query": "<image><image>Where are <ref-object>, <ref-object>?", "images": ["a.jpg", "b.jpg"]}
    return raw | {"response": "<bbox><bbox> <bbox><bbox>", "objects": objects} | settings


@pytest.mark.parametrize("form", [lambda objects: objects, json.dumps])
def test_objects_of_release_2_are_filled(form):
    raw = as_release_2()
    record = normalize_boxes(parse_record(raw | {"objects": form(raw["objects"])}, "f:3"), SIZES.__getitem__)
    assert [turn.text for turn in record.turns] == [
        "Where are <ref>the bus</ref>, <ref>two</ref>?",
        "<box>[[100, 100, 500, 500]]</box><box>[[0, 0, 500, 500], [500, 500, 1000, 1000]]</box> "
        "<box>[[0, 250, 500, 1000]]</box><box>[[0, 250, 500, 1000]]</box>",
    ]


@pytest.mark.parametrize("bad", [{"bbox": [1]}, {"bbox_type": "mm"}, {"bbox_type": []}, {"image": 2}, {"caption": 3}])
def test_unusable_objects_of_release_2_are_refused(bad):
    raw = as_release_2()
    raw["objects"][0] |= bad
    if bad == {"bbox_type": []}:
        raw["objects"][0]["bbox_type"] = ["real"]
    with pytest.raises(RecordError) as refused:
        normalize_boxes(parse_record(raw, "f:3"), SIZES.__getitem__)
    assert refused.value.reason == "objects"


@pytest.mark.parametrize("objects", ["[1", "[" * 100_000, "no list", [], [{"bbox": [1, 2, 3, 4]}, 7], 3])
def test_other_objects_beside_placeholders_are_refused(objects):
    with pytest.raises(RecordError, match="foreign|plain text"):
        parse_record(as_release_2(objects=objects), "f:3")


def test_what_is_left_over_is_said_and_other_objects_are_kept():
    assert filled("<bbox>", objects={"bbox": [[1, 2, 3, 4], [1, 2, 3, 4]]})[1] == ["objects"]
    assert filled("Yes.", question="<image>Is it?") == (["Is it?", "Yes."], [])
    raw = {
        "objects": [{"name": "bus"}],
        "conversations": [{"from": "human", "value": "a<b>"}, {"from": "gpt", "value": "b"}],
    }
    record = parse_record(raw, "f:3")
    assert normalize_boxes(record).extra == {"objects": [{"name": "bus"}]} and not record.warnings


BAD = [
    dict(answer="<bbox><bbox>"),
    dict(answer="<ref-object>"),
    dict(answer="<bbox>", objects={"bbox": None}),
    dict(answer="<bbox>", objects={"bbox": "[[1, 2, 3, 4]]"}),
    dict(answer="<bbox>", objects={"bbox": [[1, 2, 3]]}),
    dict(answer="<bbox>", objects={"bbox": [[True, 2, 3, 4]]}),
    dict(answer="<bbox>", objects={"bbox": [[1, 2, 641, 4]]}),
    dict(answer="<bbox>", objects={"bbox": [[float("nan"), 2, 3, 4]]}),
    dict(answer="<bbox>", objects={"bbox": [[10**400, 2, 3, 4]]}),
    dict(answer="<bbox>", objects={"bbox": [[1, 2, 3, 4]], "bbox_type": "norm1"}),
    dict(answer="<bbox>", objects={"bbox_type": "norm1000"}),
    dict(answer="<bbox>", objects={"image_id": [-1]}),
    dict(answer="<bbox>", objects={"ref": [3]}),
    dict(answer="<bbox>", system="Find <bbox>."),
]


@pytest.mark.parametrize("case", BAD, ids=str)
def test_unusable_objects_are_refused(case):
    with pytest.raises(RecordError) as refused:
        filled(**case)
    assert refused.value.reason == "objects" and str(refused.value).startswith("f:3: ") and refused.value.remedy


def test_boxes_in_pixels_need_the_image():
    with pytest.raises(RecordError, match="f:3: a box of the type 'real' in image 0, of 1 images"):
        normalize_boxes(grounded("<bbox>"))


def test_objects_of_a_pair_are_refused():
    messages = [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": "<bbox>"}]
    raw = {"images": ["a.jpg"], "objects": {"bbox": [[1, 2, 3, 4]]}, "messages": messages, "rejected_response": "No."}
    with pytest.raises(RecordError, match="which of them belong to which answer"):
        parse_pair(raw, "f:3")


def test_a_box_that_leaves_the_image_is_found_by_measuring_and_by_loading(data_base, write_data, make_image):
    folder = make_image("a.png", 100, 90)
    messages = [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": "<bbox>"}]
    path = write_data([{"images": ["a.png"], "objects": {"bbox": [[0, 0, 101, 90]]}, "messages": messages}])
    dataset = MultimodalDataset(data_base, path, folder)
    with pytest.raises(RecordError, match="within 100x90"):
        dataset.load(0, 0)
    complaints = dataset.lengths(0, num_workers=0).complaints.values()
    assert {complaint.reason for complaint in complaints} == {"objects"}
