"""Records of other trainers mean what the same conversation means in our form; marks of loss are obeyed or refused."""

import base64
import random

import pytest

from tests.datasets.records.other_trainers import WRITERS, check_equal, check_mutated
from xtuner_plugins.datasets.images.media import Blob
from xtuner_plugins.datasets.records.foreign import renamed
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.errors import RecordError

OURS = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def test_each_form_gives_the_same_turns():
    for write in WRITERS:
        rng = random.Random(write.__name__)
        for _ in range(100):
            check_equal(write, rng)
        assert sum(check_mutated(write, rng) for _ in range(100)), "every changed record is refused"
    alpaca = {"instruction": "", "input": "Q", "output": "A"}
    assert parse_record(alpaca, "f:1").turns == parse_record(OURS, "f:1").turns


def test_images_of_the_cauldron_stand_in_front_where_no_placeholder_says_otherwise():
    for question, expected in (("Q", ["a", "\n", "b", "\nQ"]), ("<image>x<image>", ["a", "x", "b"])):
        pair = {"user": question, "assistant": "A", "source": "x"}
        record = parse_record({"images": ["a", "b"], "texts": [pair]}, "f:1")
        assert [getattr(part, "name", part) for part in record.turns[0].parts] == expected


def test_columns_call_keys_otherwise():
    raw = {"dialog": TALK, "pic": "a.jpg", "messages": "about it", "id": 3}
    record = renamed(raw, {"messages": "dialog", "image": "pic"})
    assert record == {"messages": TALK, "image": "a.jpg", "id": 3} and "dialog" in raw
    assert renamed(raw, {}) is raw and renamed([1], {"a": "b"}) == [1]


def test_images_that_a_record_holds_itself():
    url = "data:image/png;base64," + base64.b64encode(b"bytes").decode()
    part = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Q"}]
    held = [{"image": each, **OURS} for each in (url, b"bytes", {"bytes": b"bytes", "path": "a.jpg"})]
    for raw in (*held, {"messages": [{"role": "user", "content": part}, TALK[1]]}):
        (medium,) = parse_record(raw, "f:1").media
        assert isinstance(medium.name, Blob) and medium.name.data == b"bytes" and len(str(medium.name)) < 80
    assert parse_record({"image": {"bytes": None, "path": "a.jpg"}, **OURS}, "f:1").media[0].name == "a.jpg"
    for broken in ("data:", "data:image/png,abc", "data:image/png;base64,@@@@"):
        with pytest.raises(RecordError, match="data URL that isn't whole base64"):
            parse_record({"image": broken, **OURS}, "f:1")


def learned(*marks):
    """Whether each answer is learned, of turns with these other keys."""
    turns = [turn for mark in marks for turn in (TALK[0], {**TALK[1], **mark})]
    return [turn.supervised for turn in parse_record({"messages": turns}, "f:1").turns[1::2]]


def test_answers_that_are_not_to_be_learned():
    for key in ("loss", "weight", "loss_scale", "train", "training"):
        marks = [{}, {key: False}, {key: 0}, {key: 0.0}, {key: 1}, {key: None}]
        assert learned(*marks) == [True] + [False] * 3 + [True] * 2
    spans = [{"begin_offset": 0, "end_offset": 1, "train": False}]
    assert learned({}, {"train_detail": spans}, {"train_detail": [{"train": True}]}) == [True, False, True]
    with pytest.raises(RecordError, match="turn 2 has train_detail"):
        learned({"train_detail": [*spans, {"train": True}]})
    raw, rng = {**OURS, "loss": True, "score": 2, "image": "a.jpg", "weight": 0}, random.Random(0)
    for _ in range(10):  # the order of keys decides nothing
        with pytest.raises(RecordError, match="no answer is learned"):
            parse_record({key: raw[key] for key in rng.sample(list(raw), len(raw))}, "f:1")


def test_any_other_key_is_a_warning_by_name():
    part = {"type": "image", "image": "a.jpg", "max_pixels": 9}
    answer = {**TALK[1], "reasoning_content": "hm", "tool_calls": [], "name": None, "id": 7}
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "Q"}]}, answer]
    raw = {"messages": turns, "tools": "[]", "score": 0.5, "image_path": "b.jpg", "id": 7, "source": "x", "label": 3}
    names = ("max_pixels", "reasoning_content", "score", "image_path", "label")
    found = {warning.reason for warning in parse_record(raw, "f:1").warnings}
    assert found == {f"unread_key:{name}" for name in names}
    plain = {"id": 1, "width": 3, "source": "x", "objects": None, "image_path": "", "tools": []}
    assert not parse_record(OURS | plain, "f:1").warnings
