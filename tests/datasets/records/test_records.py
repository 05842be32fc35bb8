"""A record of our forms, as a checked conversation."""

import copy

from xtuner_plugins.datasets.records.records import Medium, parse_record


def turns(*texts):
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def parse(**raw):
    return parse_record(raw, "f:7")


def image(name):
    return Medium("image", name)


def test_llava_record():
    raw = {"id": "7", "image": "a/b.jpg", "conversations": turns("<image>\nWhat?", "A bus.", "Color?", "Red.")}
    before = copy.deepcopy(raw)
    record = parse_record(raw, "f:7")
    assert raw == before  # reading never modifies
    assert [turn.role for turn in record.turns] == ["user", "assistant"] * 2
    assert [turn.text for turn in record.turns[1:]] == ["A bus.", "Color?", "Red."]
    assert record.system is None and record.extra == {"id": "7"} and record.source == "f:7"


def test_where_media_stand():
    part = [{"type": "image"}, {"type": "image_url", "image_url": {"url": "y"}}, "end <image>"]
    for questions, media, expected in [
        (["<image>\nWhat?"], {"image": "a"}, [(image("a"), "\nWhat?")]),
        (["What?"], {"image": "a"}, [(image("a"), "\n", "What?")]),
        (["Hi", "See <image> here"], {"image": "a"}, [("Hi",), ("See ", image("a"), " here")]),
        (["<image><image>1", "<image>"], {"images": list("abc")}, [(image("a"), image("b"), "1"), (image("c"),)]),
        (["An HTML <video>?"], {}, [("An HTML <video>?",)]),
        (["<video>\nWhat?"], {"video": "v.mp4"}, [(Medium("video", "v.mp4"), "\nWhat?")]),
        (["a"], {"image": None}, [("a",)]),
        (["a"], {"image": []}, [("a",)]),
        ([part], {"image": "x"}, [(image("x"), image("y"), "end <image>")]),
    ]:
        talk = [
            {"role": role, "content": text} for asked in questions for role, text in (("user", asked), ("bot", "A"))
        ]
        record = parse(messages=talk, **media)
        assert [turn.parts for turn in record.turns[::2]] == expected, questions
        assert record.turns[1].parts == ("A",)
    record = parse(image="a.jpg", conversations=turns("<image>\nTag?", "Write <image> in RSS."))
    assert record.turns[1].parts == ("Write <image> in RSS.",)


def test_system_by_key_or_turn():
    talk = turns("a", "b")
    parts = [{"type": "text", "text": "S"}]
    for raw in (
        {"system": "S", "conversations": talk},
        {"system_prompt": "S", "conversations": talk},
        {"conversations": [{"from": "system", "value": "S"}, *talk]},
        {"messages": [{"role": "system", "content": parts}, *talk]},
    ):
        record = parse(**raw)
        assert record.system == "S" and len(record.turns) == 2
