"""Records of other trainers mean what the same conversation means in our form; marks of loss are obeyed or refused."""

import copy
import json
import random

import pytest

from xtuner_plugins.datasets.records.boxes import normalize_boxes
from xtuner_plugins.datasets.records.foreign import renamed
from xtuner_plugins.datasets.records.json_index import parse_json
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.errors import DataError, RecordError

OURS = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
BOX = "<ref>it</ref><box>[[100, 100, 500, 500]]</box>"
TEXTS = ["<image>What  is 中文 e\u0301?\r\n", "<b>bold</b> 👩\u200d👧", "<image>1 < 2?\nmore", f"<|im_end|> {BOX}"]
PAIRS = [TEXTS[:2], TEXTS[2:]]


def turns(texts, key="role", value="content", roles=("user", "assistant")):
    return [{key: roles[at % 2], value: text} for at, text in enumerate(texts)]


def parts(at, name):
    """A question as a list of parts."""
    image = {"type": "image_url", "image_url": {"url": f"{name}.png"}}
    return [image, {"type": "text", "text": TEXTS[at].removeprefix("<image>")}]


FILLED = [text.replace(BOX, "<ref-object><bbox>") for text in TEXTS]
OBJECTS = {"ref": ["it"], "image_id": [1]}
LAST = {"history": PAIRS[:1]}
FORMS = [  # of one conversation
    {"messages": turns(TEXTS)},
    {"messages": turns(TEXTS, "from", "value", ("human", "bot"))},
    {"conversations": turns(TEXTS, "from", "value", ("USER", "ASSISTANT"))},
    {"conversations": turns(TEXTS, roles=("user", "chatgpt"))},
    {"messages": turns(TEXTS, roles=("Human", "bing"))},
    {"messages": turns(TEXTS, roles=("user", "model"))},
    {"query": TEXTS[2], "response": TEXTS[3], **LAST},
    {"instruction": TEXTS[2][:-5], "input": "more", "output": TEXTS[3], **LAST},
    {"conversation": [{"human": question, "assistant": answer} for question, answer in PAIRS]},
    {"texts": [{"user": question, "assistant": answer} for question, answer in PAIRS]},
    {"messages": turns(FILLED), "objects": OBJECTS | {"bbox": [[64, 48, 320, 240]], "bbox_type": "real"}},
    {"messages": turns(FILLED), "objects": OBJECTS | {"bbox": [[0.1, 0.1, 0.5, 0.5]], "bbox_type": "norm1"}},
    {"messages": turns([parts(0, "a"), TEXTS[1], parts(2, "b"), TEXTS[3]]), "images": None},
]


def meaning(raw):
    """What is trained of a record, whose images have 640x480 pixels."""
    record = normalize_boxes(parse_record(raw, "f:1"), lambda place: (640, 480))
    return record.turns, record.system


VALUES = [None, True, 0, -1, 1.5, 1e400, "", "x", [], {}, ["x"], {"a": 1}, [None], [[]], "human", "data:", "<image>"]
VALUES += ["\ud800", "data:image/png;base64,AAAA", "data:image/png;base64,AAA"]


def spoiled(value, rng):
    """The value with a few places changed, left out or doubled."""
    if rng.random() < 0.03:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        return {key if rng.random() > 0.01 else "image": spoiled(part, rng) for key, part in value.items()}
    if isinstance(value, list):
        return [spoiled(part, rng) for part in value for _ in range(rng.choice([0, 2] + [1] * 50))]
    return value


def test_a_form_with_wrong_values_gives_our_errors():
    rng, wrong = random.Random(0), 0
    for form in FORMS * 80:
        try:
            meaning(parse_json(json.dumps(spoiled({"images": ["a.png", "b.png"], **form}, rng)).encode(), "f:1"))
        except DataError as error:
            assert str(error).startswith("f:1: ") and error.reason and error.remedy, error
            wrong += 1
    assert 300 < wrong < 900  # of 1,040


def test_each_form_gives_the_same_turns():
    shared = {"images": ["a.png", "b.png"], "system": "Be brief."}
    expected = meaning({**shared, "conversations": turns(TEXTS, "from", "value", ("human", "gpt"))})
    for theirs in ({**shared, **form} for form in FORMS):
        before = copy.deepcopy(theirs)
        assert meaning(theirs) == expected and theirs == before, theirs
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


def test_answers_that_are_not_to_be_learned():
    def learned(*marks):
        said = [turn for mark in marks for turn in (TALK[0], {**TALK[1], **mark})]
        return [turn.supervised for turn in parse_record({"messages": said}, "f:1").turns[1::2]]

    for key in ("loss", "weight", "loss_scale", "train", "training"):
        marks = [{}, {key: False}, {key: 0}, {key: 0.0}, {key: 1}, {key: None}]
        assert learned(*marks) == [True] + [False] * 3 + [True] * 2
    spans = [{"begin_offset": 0, "end_offset": 1, "train": False}]
    assert learned({}, {"train_detail": spans}, {"train_detail": [{"train": True}]}) == [True, False, True]
    with pytest.raises(RecordError, match="turn 2 has train_detail"):
        learned({"train_detail": [*spans, {"train": True}]})
    for marks in ({"loss": True, "weight": 0}, {"weight": 0, "loss": True}):  # the order of keys decides nothing
        with pytest.raises(RecordError, match="no answer is learned"):
            parse_record({**marks, **OURS, "score": 2, "image": "a.jpg"}, "f:1")


def test_any_other_key_is_a_warning_by_name():
    part = {"type": "image", "image": "a.jpg", "max_pixels": 9}
    answer = {**TALK[1], "reasoning_content": "hm", "tool_calls": [], "name": None, "id": 7}
    said = [{"role": "user", "content": [part, {"type": "text", "text": "Q"}]}, answer]
    raw = {"messages": said, "tools": "[]", "score": 0.5, "image_path": "b.jpg", "id": 7, "source": "x", "label": 3}
    found = {warning.reason for warning in parse_record(raw, "f:1").warnings}
    names = ("max_pixels", "reasoning_content", "score", "image_path", "label")
    assert found == {f"unread_key:{name}" for name in names}
    plain = {"id": 1, "width": 3, "source": "x", "objects": None, "image_path": "", "tools": []}
    assert not parse_record(OURS | plain, "f:1").warnings
