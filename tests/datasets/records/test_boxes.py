"""Boxes: pixels become the 0-1000 frame, boxes already in it are checked, ms-swift's are filled in."""

import pytest

from xtuner_plugins.datasets import RecordError
from xtuner_plugins.datasets.records.boxes import find_boxes, normalize_boxes
from xtuner_plugins.datasets.records.pairs import parse_pair
from xtuner_plugins.datasets.records.records import parse_record

SIZES = [(640, 480), (100, 200)]


def grounded(answer, question="<image>Where is <ref-object>?", images=("a.jpg",), objects=(), **rest):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    bus = {"ref": ["the bus"], "bbox": [[64, 48, 320, 240]]}
    return {"images": list(images), "objects": {**bus, **dict(objects)}, "messages": messages, **rest}


def filled(*args, **settings):
    return normalize_boxes(parse_record(grounded(*args, **settings), "f:3"), SIZES.__getitem__)


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
    ("Yes.", {}, {"question": "<image>Is it?"}, "Yes."),
]


def test_objects_are_filled_in_reading_order_or_refused():
    for answer, objects, facts, expected in FILLED:
        record = filled(answer, objects=objects, **facts)
        assert record.turns[1].text == expected and not record.warnings
    assert filled("<bbox>").turns[0].text == "Where is <ref>the bus</ref>?"
    assert find_boxes("<box>[[1, 2, 3, 4], [5, 6]]</box><box>x</box><box>[5, 6, 7, 8]</box>") == [
        (1, 2, 3, 4),
        (5, 6, 7, 8),
    ]
    (warning,) = filled("<bbox>", objects={"bbox": [[1, 2, 3, 4], [1, 2, 3, 4]]}).warnings
    other = parse_record({**grounded("a<b>", "<image>Q"), "objects": [{"name": "bus"}]}, "f:3")
    assert warning.reason == "objects" and normalize_boxes(other) == other and not other.warnings
    with pytest.raises(RecordError, match="f:3: a placeholder of 'objects' in the system message"):
        filled("<bbox>", system="Find <bbox>.")
    with pytest.raises(RecordError, match="f:3: a box in pixels of image 0, of 1 images"):
        normalize_boxes(parse_record(grounded("<bbox>"), "f:3"))
    with pytest.raises(RecordError, match="which of them belong to which answer"):
        parse_pair(grounded("<bbox>", "<image>Where?", rejected_response="No."), "f:3")
