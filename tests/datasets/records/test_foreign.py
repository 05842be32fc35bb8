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
WORDS = ["What", "is it?", "中文", "e\u0301", "👩\u200d👧", "\n", " ", "1 < 2", "<b>bold</b>", "<|im_end|>", "\r\n"]
VALUES = [None, True, 0, -1, 1.5, 1e400, "", "x", [], {}, ["x"], {"a": 1}, [None], [[]], "human", "data:", "<image>"]
VALUES += ["\ud800", "data:image/png;base64,AAAA", "data:image/png;base64,AAA"]
ROLES = [("human", "bot"), ("USER", "ASSISTANT"), ("user", "chatgpt"), ("Human", "bing"), ("user", "model")]


def turns(texts, key="role", value="content", roles=("user", "assistant")):
    return [{key: roles[at % 2], value: text} for at, text in enumerate(texts)]


def parts(text, names):
    """A question as content parts of OpenAI's API."""
    found = []
    for number, part in enumerate(text.split("<image>")):
        found += [{"type": "image_url", "image_url": {"url": next(names)}}] if number else []
        found += [{"type": "text", "text": part}] if part else []
    return found


def conversation(rng):
    """A random conversation in our form, and in each of the others."""
    texts = ["x" + " ".join(rng.choices(WORDS, k=rng.randrange(6))) for _ in range(2 * rng.randrange(1, 4))]
    names, boxes = ["a.png", "b.png"][: rng.randrange(3)], rng.randrange(1, 4)
    for number in range(len(names)):  # filling goes from turn to turn, and a turn may have several
        place = 2 * rng.randrange(number, 9) % len(texts)
        texts[place] = "<image>\n" + texts[place]
    shared = ({"images": names} if names else {}) | ({"system": "Be brief."} if rng.random() < 0.3 else {})
    texts[-2:] = f"{texts[-2]}\nmore", f"{texts[-1]}<ref>it</ref><box>[[100, 100, 500, 500]]</box>" * boxes
    pairs, roles, left = [texts[at : at + 2] for at in range(0, len(texts), 2)], rng.choice(ROLES), iter(names)
    alpaca = {"instruction": texts[-2].removesuffix("\nmore"), "input": "more", "output": texts[-1]}
    forms = [([0.1, 0.1, 0.5, 0.5], "norm1"), ([64, 48, 320, 240], "real")]
    box, kind = rng.choice(forms if names else forms[:1])
    objects = {"ref": ["it"] * boxes, "bbox": [box] * boxes, "bbox_type": kind, "image_id": [0] * boxes}
    marked = texts[-1].replace("<ref>it</ref><box>[[100, 100, 500, 500]]</box>", "<ref-object><bbox>")
    parted = turns([text if at % 2 else parts(text, left) for at, text in enumerate(texts)])
    others = [
        {"messages": turns(texts)},
        {"messages": turns(texts, "from", "value", roles)},
        {"conversations": turns(texts, "from", "value", roles)},
        {"conversations": turns(texts, "role", "content", roles)},
        {"query": texts[-2], "response": texts[-1], "history": pairs[:-1]},
        {**alpaca, "history": pairs[:-1]},
        {"conversation": [{"human": question, "assistant": answer} for question, answer in pairs]},
        {"texts": [{"user": question, "assistant": answer} for question, answer in pairs]},
        {"messages": turns([*texts[:-1], marked]), "objects": objects},
    ]
    ours = {**shared, "conversations": turns(texts, "from", "value", ("human", "gpt"))}
    system = {key: value for key, value in shared.items() if key != "images"}
    return ours, [{**each, **shared} for each in others] + [{"messages": parted, **system}]


def meaning(raw):
    """What is trained of a record, whose images have 640x480 pixels."""
    record = normalize_boxes(parse_record(raw, "f:1"), lambda place: (640, 480))
    return record.turns, record.system


def changed(value, rng):
    """The value with a few places changed."""
    if rng.random() < 0.03:
        return copy.deepcopy(rng.choice(VALUES))
    if isinstance(value, dict):
        kept = {key: changed(part, rng) for key, part in value.items() if rng.random() > 0.02}
        return {(rng.choice(["image", "objects", "x"]) if rng.random() < 0.01 else key): kept[key] for key in kept}
    if isinstance(value, list):
        found = [changed(part, rng) for part in value]
        return found + [copy.deepcopy(rng.choice(found))] if found and rng.random() < 0.05 else found
    return value


def test_each_form_gives_the_same_turns_and_a_wrong_one_our_errors():
    rng, fates = random.Random(0), []
    for _ in range(100):
        ours, others = conversation(rng)
        for theirs in others:
            before = copy.deepcopy(theirs)
            assert meaning(theirs) == meaning(ours), (theirs, ours)
            assert theirs == before, "the record was changed"
            try:
                meaning(parse_json(json.dumps(changed(theirs, rng)).encode(), "f:1"))
                fates.append(True)
            except DataError as error:
                assert str(error).startswith("f:1: ") and error.reason and error.remedy, error
                fates.append(False)
    assert 0.1 < sum(fates) / len(fates) < 0.9
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


def learned(*marks):
    """Whether each answer is learned, of turns with these other keys."""
    said = [turn for mark in marks for turn in (TALK[0], {**TALK[1], **mark})]
    return [turn.supervised for turn in parse_record({"messages": said}, "f:1").turns[1::2]]


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
    said = [{"role": "user", "content": [part, {"type": "text", "text": "Q"}]}, answer]
    raw = {"messages": said, "tools": "[]", "score": 0.5, "image_path": "b.jpg", "id": 7, "source": "x", "label": 3}
    found = {warning.reason for warning in parse_record(raw, "f:1").warnings}
    names = ("max_pixels", "reasoning_content", "score", "image_path", "label")
    assert found == {f"unread_key:{name}" for name in names}
    plain = {"id": 1, "width": 3, "source": "x", "objects": None, "image_path": "", "tools": []}
    assert not parse_record(OURS | plain, "f:1").warnings
