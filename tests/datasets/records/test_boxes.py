"""Boxes: pixels become the 0-1000 frame, boxes already in it are checked, ms-swift's are filled in."""

import pytest

from xtuner_plugins.audit.check import check_dataset
from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.records.boxes import compare_size, find_boxes, normalize_boxes
from xtuner_plugins.datasets.records.pairs import parse_pair
from xtuner_plugins.datasets.records.records import parse_record

SIZES = [(640, 480), (100, 200)]


def boxed(answer, **extra):
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": answer}]
    raw = {"image": "a.jpg", "boxes": "pixel", "width": 640, "height": 480, "conversations": turns}
    return parse_record(raw | extra, "f:3")


def grounded(answer, question="<image>Where is <ref-object>?", images=("a.jpg",), objects=(), **rest):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    objects = {"ref": ["the bus"], "bbox": [[64, 48, 320, 240]], **dict(objects)}
    return parse_record({"images": list(images), "objects": objects, "messages": messages, **rest}, "f:3")


def filled(*args, **settings):
    record = normalize_boxes(grounded(*args, **settings), SIZES.__getitem__)
    return [turn.text for turn in record.turns], [warning.reason for warning in record.warnings]


def test_pixel_boxes_enter_the_frame():
    record = normalize_boxes(boxed("<ref>bus</ref><box>[[64, 48, 320, 240]]</box> and <box>[0,0,640,480]</box>"))
    text = record.turns[1].text
    assert text == "<ref>bus</ref><box>[[100, 100, 500, 500]]</box> and <box>[[0, 0, 1000, 1000]]</box>"
    assert find_boxes(text) == [(100, 100, 500, 500), (0, 0, 1000, 1000)]
    assert find_boxes("<box>[[1, 2, 3]]</box> <box>x</box> <box>{}</box> <box>[1, 2, 3, 4]</box>") == [(1, 2, 3, 4)]
    plain = boxed("<box>[[1, 2, 3, 4]]</box>", boxes=None)
    assert normalize_boxes(plain) == plain
    with pytest.raises(RecordError, match="f:3: the record says 640x480, the image is 480x640"):
        normalize_boxes(boxed("<box>[[1, 2, 3, 4]]</box>"), lambda place: (480, 640))


def test_sizes_that_lie_are_a_warning(make_image, data_base, write_data, qa):
    folder = make_image("a.png", 100, 90)
    path = write_data([qa(image="a.png", width=90, height=100), qa(image="a.png", width=100, height=90)])
    said = []
    dataset = MultimodalDataset(data_base, path, folder)
    (report,) = check_dataset(dataset, num_workers=0, say=lambda report, each: said.append(report.message(each)))
    assert report.warnings == {"image_size": 1} and not report.complaints
    assert said[0].startswith(f"{path}:1: the record says 90x100, the image is 100x90")
    assert compare_size(boxed("No size.", width=None), (5, 5)) is None


def test_wrong_boxes_are_errors_and_doubtful_ones_warnings():
    wrong = [
        ("<box>[[1, 2, 3]]</box>", {}, "is no box"),
        ("<box>here</box>", {}, "is no box"),
        ("<box>[[1, 2, 3, 4]]", {}, "a box isn't closed"),
        ("<box>[[3, 2, 1, 4]]</box>", {}, "within 640x480"),
        ("<box>[[1, 2, 3, 481]]</box>", {}, "within 640x480"),
        ("<box>[[1, 2, 3, 4]]</box>", {"boxes": "relative"}, "'boxes' is 'relative'"),
        ("<box>[[1, 2, 3, 4]]</box>", {"width": None}, "in an image of None x 480"),
        ("<box>[[1, 2, 3, 4]]</box>", {"image": None}, "pixel boxes with 0 images"),
        ("<box>[[1, 2, 3, 1001]]</box>", {"boxes": "normalized"}, "within 0 to 1000"),
        ("<box>[[3, 2, 1, 4]]</box>", {"boxes": None}, "within 0 to 1000"),
    ]
    for answer, extra, words in wrong:
        with pytest.raises(RecordError, match=f"^f:3: .*{words}") as caught:
            normalize_boxes(boxed(answer, **extra))
        assert caught.value.reason == "boxes" and caught.value.remedy
    doubtful = {"<box>[[0.1, 0.2, 0.3, 0.4]]</box>": "in fractions", "<box>a crate</box>": "is no box"}
    for answer, words in {**doubtful, "<ref>it": "1 <ref> and 0 </ref>"}.items():
        record = boxed(answer, boxes="normalized")
        (warning,) = normalize_boxes(record).warnings
        assert words in str(warning) and warning.reason == "grounding" and warning.place == "f:3"
        assert normalize_boxes(record).turns == record.turns


def test_objects_are_filled_in_reading_order():
    two = {"ref": ["a", "b"], "bbox": [[0, 0, 640, 480], [1, 2, 1.5, 2]]}
    both = {"bbox": [[50, 100, 100, 200], [64, 48, 320, 240]], "image_id": [1]}  # the second is the first image's
    fractions = {"bbox": [[0.1, 0.25, 0.5, 1]], "bbox_type": "norm1"}
    for answer, settings, expected in [
        ("At <bbox>.", {}, "At <box>[[100, 100, 500, 500]]</box>."),
        (
            "<bbox> <ref-object> <bbox>",
            {"objects": two},
            "<box>[[0, 0, 1000, 1000]]</box> <ref>b</ref> <box>[[2, 4, 2, 4]]</box>",
        ),
        ("<bbox>", {"objects": fractions}, "<box>[[100, 250, 500, 1000]]</box>"),
        ("<bbox>", {"objects": {"bbox": [[320, 240]]}}, "<box>[[500, 500]]</box>"),
        (
            "<bbox>",  # in the image, which is the second medium
            {"question": "<video><image><ref-object>", "video": "v.mp4", "objects": {"bbox": [[50, 100, 100, 200]]}},
            "<box>[[500, 500, 1000, 1000]]</box>",
        ),
        (
            "<bbox><bbox>",
            {"question": "<image><image><ref-object>", "images": ("a.jpg", "b.jpg"), "objects": both},
            "<box>[[500, 500, 1000, 1000]]</box><box>[[100, 100, 500, 500]]</box>",
        ),
    ]:
        texts, warnings = filled(answer, **settings)
        assert texts[1] == expected and not warnings
    assert filled("<bbox>")[0][0] == "Where is <ref>the bus</ref>?"
    assert filled("<bbox>", objects={"bbox": [[1, 2, 3, 4], [1, 2, 3, 4]]})[1] == ["objects"]
    assert filled("Yes.", question="<image>Is it?") == (["Is it?", "Yes."], [])
    other = boxed("a<b>", boxes=None, objects=[{"name": "bus"}])
    assert normalize_boxes(other).extra["objects"] == [{"name": "bus"}] and not other.warnings


def test_unusable_objects_are_refused():
    bad = [
        dict(answer="<bbox><bbox>"),
        dict(answer="<ref-object>"),
        dict(answer="<bbox>", system="Find <bbox>."),
    ]
    bad_objects = [
        {"bbox": None},
        {"bbox": "[[1, 2, 3, 4]]"},
        {"bbox": [[1, 2, 3]]},
        {"bbox": [[[1, 2, 3, 4]]]},
        {"bbox": [[True, 2, 3, 4]]},
        {"bbox": [[1, 2, 641, 4]]},
        {"bbox": [[float("nan"), 2, 3, 4]]},
        {"bbox": [[10**400, 2, 3, 4]]},
        {"bbox": [[1, 2, 3, 4]], "bbox_type": "norm1"},
        {"bbox_type": "norm1000"},
        {"bbox_type": ["real"]},
        {"image_id": [-1]},
        {"image_id": 1},
        {"ref": [3]},
    ]
    for case in bad + [dict(answer="<bbox>", objects=objects) for objects in bad_objects]:
        with pytest.raises(RecordError) as refused:
            filled(**case)
        assert refused.value.reason == "objects" and str(refused.value).startswith("f:3: ") and refused.value.remedy
    with pytest.raises(RecordError, match="f:3: a box in pixels of image 0, of 1 images"):
        normalize_boxes(grounded("<bbox>"))
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
