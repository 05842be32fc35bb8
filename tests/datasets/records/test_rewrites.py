"""What each rewriting makes of a record."""

import pytest

from xtuner_plugins.datasets import RecordError
from xtuner_plugins.datasets.records.records import Medium, parse_record
from xtuner_plugins.datasets.records.rewrites import from_alpaca, from_qwen_vl, history_messages, join_input

ASKED = {"role": "user", "content": "a"}


def test_history():
    assert history_messages([["a", "b"]], "f:1") == [ASKED, {"role": "assistant", "content": "b"}]
    assert history_messages(None, "f:1") == history_messages([], "f:1") == []
    for wrong in ({}, "x", [["a"]], [3], 0):
        with pytest.raises(RecordError, match="f:1: 'history'"):
            history_messages(wrong, "f:1")


def test_instruction_and_input():
    assert join_input("a", "b", "f:1") == "a\nb"
    assert join_input("a", "", "f:1") == join_input("a", None, "f:1") == join_input(None, "a", "f:1") == "a"


def test_keys_without_a_meaning_are_kept():
    raw = {"id": 7, "instruction": "a", "input": "", "output": "b", "history": []}
    assert from_alpaca(raw, "f:1") == {"id": 7, "messages": [ASKED, {"role": "assistant", "content": "b"}]}


def test_tags_of_qwen_vl():
    text = "Picture 1: <img>a b/x.jpg</img>\nPicture 2: <img>/y.png </img>\n<ref>it</ref> at <box>(1, 2),(30,4)</box>?"
    answer = "<box>(1,2),(3,4)</box><box>(5,6),(7,8)</box> <img>z.jpg</img> <box>(1.5,2),(3,4)</box>"
    turns = [{"from": "user", "value": text}, {"from": "assistant", "value": answer}]
    out = from_qwen_vl({"id": "7", "conversations": turns}, "f:1")
    asked, answered = (turn["value"] for turn in out["conversations"])
    assert asked == "Picture 1: <image>\nPicture 2: <image>\n<ref>it</ref> at <box>[[1, 2, 30, 4]]</box>?"
    # An image in an answer and a box that isn't Qwen-VL's stay; checks of texts and boxes warn about them.
    assert answered.startswith("<box>[[1, 2, 3, 4]]</box><box>[[5, 6, 7, 8]]</box> <img>z.jpg</img> <box>(1.5,")
    assert out["images"] == ["a b/x.jpg", "/y.png"] and out["id"] == "7"
    record = parse_record({"conversations": turns}, "f:1")
    assert record.media == [Medium("image", "a b/x.jpg"), Medium("image", "/y.png")]
