"""Records of other trainers mean what the same conversation means in our form; marks of loss are obeyed or refused."""

import base64
import random

import pytest

from tests.datasets.records import other_trainers
from xtuner_plugins.datasets.images.media import Blob
from xtuner_plugins.datasets.records.foreign import renamed
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.errors import RecordError

OURS = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize("kind", other_trainers.WRITERS)
def test_generated_records_are_equal_to_ours(kind):
    other_trainers.check_kind(kind, 200)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TALK},
        {"conversations": TALK},
        {"messages": OURS["conversations"]},
        {"conversation": [{"human": "Q", "assistant": "A"}]},
        {"conversation": [{"user": "Q", "bot": "A"}]},
        {"query": "Q", "response": "A"},
        {"instruction": "Q", "output": "A", "input": ""},
        {"instruction": "", "input": "Q", "output": "A"},
        {"conversations": [{"from": "USER", "value": "Q"}, {"from": "ChatGPT", "value": "A"}]},
    ],
)
def test_each_form_gives_the_same_turns(record):
    assert parse_record(record, "f:1").turns == parse_record(OURS, "f:1").turns


def test_columns_call_keys_otherwise():
    raw = {"dialog": TALK, "pic": "a.jpg", "messages": "about it", "id": 3}
    record = renamed(raw, {"messages": "dialog", "image": "pic"})
    assert record == {"messages": TALK, "image": "a.jpg", "id": 3} and "dialog" in raw
    assert renamed(raw, {}) is raw and renamed([1], {"a": "b"}) == [1]


def test_data_urls_are_the_images_themselves():
    url = "data:image/png;base64," + base64.b64encode(b"bytes").decode()
    part = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Q"}]
    for raw in ({"image": url, **OURS}, {"messages": [{"role": "user", "content": part}, TALK[1]]}):
        (medium,) = parse_record(raw, "f:1").media
        assert isinstance(medium.name, Blob) and medium.name.data == b"bytes" and len(str(medium.name)) < 80
    for broken in ("data:", "data:image/png,abc", "data:image/png;base64,@@@@"):
        with pytest.raises(RecordError, match="data URL that isn't whole base64"):
            parse_record({"image": broken, **OURS}, "f:1")


def learned(*marks):
    """Whether each answer is learned, of turns with these other keys."""
    turns = [
        turn
        for mark in marks
        for turn in ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", **mark})
    ]
    return [turn.supervised for turn in parse_record({"messages": turns}, "f:1").turns[1::2]]


SPANS = [{"begin_offset": 0, "end_offset": 1, "train": False}]


@pytest.mark.parametrize("key", ["loss", "weight", "loss_scale", "train", "training"])
def test_answers_that_are_not_to_be_learned(key):
    assert learned({}, {key: False}, {key: 0}, {key: 0.0}, {key: 1}, {key: None}) == [True] + [False] * 3 + [True] * 2


def test_spans_of_an_answer_are_obeyed_where_they_agree():
    assert learned({}, {"train_detail": SPANS}, {"train_detail": [{"train": True}]}) == [True, False, True]
    with pytest.raises(RecordError, match="turn 2 has train_detail"):
        learned({"train_detail": [*SPANS, {"train": True}]})


def test_any_other_key_is_a_warning_by_name():
    part = {"type": "image", "image": "a.jpg", "max_pixels": 9}
    turns = [
        {"role": "user", "content": [part, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A", "reasoning_content": "hm", "tool_calls": [], "name": None, "id": 7},
    ]
    raw = {"messages": turns, "tools": "[]", "score": 0.5, "image_path": "b.jpg", "id": 7, "source": "x", "label": 3}
    found = {warning.reason for warning in parse_record(raw, "f:1").warnings}
    assert found == {
        f"unread_key:{name}" for name in ("max_pixels", "reasoning_content", "score", "image_path", "label")
    }
    plain = {"id": 1, "width": 3, "source": "x", "objects": None, "image_path": "", "tools": []}
    assert not parse_record(OURS | plain, "f:1").warnings


def test_keys_survive_a_shuffle():
    """The order of keys decides nothing."""
    raw, rng = {**OURS, "loss": True, "score": 2, "image": "a.jpg", "weight": 0}, random.Random(0)
    for _ in range(10):
        keys = rng.sample(list(raw), len(raw))
        with pytest.raises(RecordError, match="no answer is learned"):
            parse_record({key: raw[key] for key in keys}, "f:1")
