"""Boxes: pixels become the 0-1000 frame, boxes already in it are checked, ms-swift's are filled in."""

import pytest

from xtuner_plugins.audit.check import check_dataset
from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.records.boxes import compare_size, find_boxes, normalize_boxes
from xtuner_plugins.datasets.records.pairs import parse_pair
from xtuner_plugins.datasets.records.records import parse_record

SIZES = [(640, 480), (100, 200)]
BUS = {"ref": ["the bus"], "bbox": [[64, 48, 320, 240]]}


def boxed(answer, **extra):
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": answer}]
    raw = {"image": "a.jpg", "boxes": "pixel", "width": 640, "height": 480, "conversations": turns}
    return parse_record(raw | extra, "f:3")


def grounded(answer, question="<image>Where is <ref-object>?", images=("a.jpg",), objects=(), **rest):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"images": list(images), "objects": {**BUS, **dict(objects)}, "messages": messages, **rest}


def filled(*args, **settings):
    record = normalize_boxes(parse_record(grounded(*args, **settings), "f:3"), SIZES.__getitem__)
    return [turn.text for turn in record.turns], [warning.reason for warning in record.warnings]


def test_pixel_boxes_enter_the_frame():
    text = (
        normalize_boxes(boxed("<ref>bus</ref><box>[[64, 48, 320, 240]]</box> <box>[0,0,640,480]</box>")).turns[1].text
    )
    assert text == "<ref>bus</ref><box>[[100, 100, 500, 500]]</box> <box>[[0, 0, 1000, 1000]]</box>"
    assert find_boxes(text) == [(100, 100, 500, 500), (0, 0, 1000, 1000)]
    assert find_boxes("<box>[[1, 2, 3]]</box> <box>x</box> <box>{}</box> <box>[1, 2, 3, 4]</box>") == [(1, 2, 3, 4)]
    plain = boxed("<box>[[1, 2, 3, 4]]</box>", boxes=None)
    assert normalize_boxes(plain) == plain
    with pytest.raises(RecordError, match="f:3: the record says 640x480, the image is 480x640"):
        normalize_boxes(boxed("<box>[[1, 2, 3, 4]]</box>"), lambda place: (480, 640))


def test_sizes_and_boxes_of_images(make_image, data_base, write_data, qa):
    """A size that lies is a warning; a box that leaves the image is found by measuring and by loading."""
    folder = make_image("a.png", 100, 90)
    records = [qa(image="a.png", width=width, height=height) for width, height in ((90, 100), (100, 90))]
    outside = grounded("<bbox>", images=["a.png"], objects={"bbox": [[0, 0, 101, 90]]})
    path, said = write_data([*records, outside]), []
    dataset = MultimodalDataset(data_base, path, folder)
    (report,) = check_dataset(dataset, num_workers=0, say=lambda report, each: said.append(report.message(each)))
    assert report.warnings == {"image_size": 1} and report.complaints == {"objects": 1}
    assert any(text.startswith(f"{path}:1: the record says 90x100, the image is 100x90") for text in said)
    with pytest.raises(RecordError, match="within 100x90"):
        dataset.load(0, 2)
    assert compare_size(boxed("No size.", width=None), (5, 5)) is None


WRONG = [
    ("[[1, 2, 3]]</box>", {}, "is no box"),
    ("here</box>", {}, "is no box"),
    ("[[1, 2, 3, 4]]", {}, "a box isn't closed"),
    ("[[3, 2, 1, 4]]</box>", {}, "within 640x480"),
    ("[[1, 2, 3, 481]]</box>", {}, "within 640x480"),
    ("[[1, 2, 3, 4]]</box>", {"boxes": "relative"}, "'boxes' is 'relative'"),
    ("[[1, 2, 3, 4]]</box>", {"width": None}, "in an image of None x 480"),
    ("[[1, 2, 3, 4]]</box>", {"image": None}, "pixel boxes with 0 images"),
    ("[[1, 2, 3, 1001]]</box>", {"boxes": "normalized"}, "within 0 to 1000"),
    ("[[3, 2, 1, 4]]</box>", {"boxes": None}, "within 0 to 1000"),
]
DOUBTFUL = {"<box>[[0.1, 0.2, 0.3, 0.4]]</box>": "in fractions", "<box>a crate</box>": "is no box"}


def test_wrong_boxes_are_errors_and_doubtful_ones_warnings():
    for answer, extra, words in WRONG:
        with pytest.raises(RecordError, match=f"^f:3: .*{words}") as caught:
            normalize_boxes(boxed(f"<box>{answer}", **extra))
        assert caught.value.reason == "boxes" and caught.value.remedy
    for answer, words in {**DOUBTFUL, "<ref>it": "1 <ref> and 0 </ref>"}.items():
        record = boxed(answer, boxes="normalized")
        (warning,) = normalize_boxes(record).warnings
        assert words in str(warning) and warning.reason == "grounding" and warning.place == "f:3"
        assert normalize_boxes(record).turns == record.turns


TWO = {"ref": ["a", "b"], "bbox": [[0, 0, 640, 480], [1, 2, 1.5, 2]]}
BOTH = {"bbox": [[50, 100, 100, 200], [64, 48, 320, 240]], "image_id": [1]}  # the second is the first image's
IMAGES = {"question": "<image><image><ref-object>", "images": ("a.jpg", "b.jpg")}
BESIDE = {"question": "<video><image><ref-object>", "video": "v.mp4"}
FILLED = [  # the answer, its objects and other facts, what becomes of it
    ("At <bbox>.", {}, {}, "At <box>[[100, 100, 500, 500]]</box>."),
    ("<bbox><ref-object><bbox>", TWO, {}, "<box>[[0, 0, 1000, 1000]]</box><ref>b</ref><box>[[2, 4, 2, 4]]</box>"),
    ("<bbox>", {"bbox": [[0.1, 0.25, 0.5, 1]], "bbox_type": "norm1"}, {}, "<box>[[100, 250, 500, 1000]]</box>"),
    ("<bbox>", {"bbox": [[320, 240]]}, {}, "<box>[[500, 500]]</box>"),
    ("<bbox>", {"bbox": [[50, 100, 100, 200]]}, BESIDE, "<box>[[500, 500, 1000, 1000]]</box>"),  # the second medium
    ("<bbox><bbox>", BOTH, IMAGES, "<box>[[500, 500, 1000, 1000]]</box><box>[[100, 100, 500, 500]]</box>"),
]


def test_objects_are_filled_in_reading_order():
    for answer, objects, facts, expected in FILLED:
        texts, warnings = filled(answer, objects=objects, **facts)
        assert texts[1] == expected and not warnings
    assert filled("<bbox>")[0][0] == "Where is <ref>the bus</ref>?"
    assert filled("<bbox>", objects={"bbox": [[1, 2, 3, 4], [1, 2, 3, 4]]})[1] == ["objects"]
    assert filled("Yes.", question="<image>Is it?") == (["Is it?", "Yes."], [])
    other = boxed("a<b>", boxes=None, objects=[{"name": "bus"}])
    assert normalize_boxes(other).extra["objects"] == [{"name": "bus"}] and not other.warnings


BAD_BOXES = (None, "[[1, 2, 3, 4]]", [[1, 2, 3]], [[[1, 2, 3, 4]]], [[True, 2, 3, 4]], [[1, 2, 641, 4]])
BAD_OBJECTS = [{"bbox": box} for box in (*BAD_BOXES, [[float("nan"), 2, 3, 4]], [[10**400, 2, 3, 4]])]
BAD_OBJECTS += [{"bbox": [[1, 2, 3, 4]], "bbox_type": "norm1"}, {"bbox_type": "norm1000"}, {"bbox_type": ["real"]}]
BAD_OBJECTS += [{"image_id": [-1]}, {"image_id": 1}, {"ref": [3]}]


def test_unusable_objects_are_refused():
    bad = [dict(answer="<bbox><bbox>"), dict(answer="<ref-object>"), dict(answer="<bbox>", system="Find <bbox>.")]
    for case in bad + [dict(answer="<bbox>", objects=objects) for objects in BAD_OBJECTS]:
        with pytest.raises(RecordError) as refused:
            filled(**case)
        assert refused.value.reason == "objects" and str(refused.value).startswith("f:3: ") and refused.value.remedy
    with pytest.raises(RecordError, match="f:3: a box in pixels of image 0, of 1 images"):
        normalize_boxes(parse_record(grounded("<bbox>"), "f:3"))
    with pytest.raises(RecordError, match="which of them belong to which answer"):
        parse_pair(grounded("<bbox>", "<image>Where?", rejected_response="No."), "f:3")
