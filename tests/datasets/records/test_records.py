"""A record of our forms, as a checked conversation."""

from xtuner_plugins.datasets.records.records import Medium, parse_record


def image(name):
    return Medium("image", name)


def talk(*questions):
    return [turn for asked in questions for turn in ({"role": "user", "content": asked}, {"from": "bot", "value": "A"})]


PART = [{"type": "image"}, {"type": "image_url", "image_url": {"url": "y"}}, "end <image>"]
PLACES = [  # questions, media, parts of the questions
    (["<image>\nWhat?"], {"image": "a"}, [(image("a"), "\nWhat?")]),
    (["What?"], {"image": "a"}, [(image("a"), "\n", "What?")]),
    (["Hi", "See <image> here"], {"image": "a"}, [("Hi",), ("See ", image("a"), " here")]),
    (["<image><image>1", "<image>"], {"images": list("abc")}, [(image("a"), image("b"), "1"), (image("c"),)]),
    (["An HTML <video>?"], {}, [("An HTML <video>?",)]),
    (["<video>\nWhat?"], {"video": "v.mp4"}, [(Medium("video", "v.mp4"), "\nWhat?")]),
    (["a"], {"image": None}, [("a",)]),
    (["a"], {"image": []}, [("a",)]),
    ([PART], {"image": "x"}, [(image("x"), image("y"), "end <image>")]),
]


def test_where_media_stand():
    for questions, media, expected in PLACES:
        record = parse_record({"id": "7", "messages": talk(*questions), **media}, "f:7")
        assert [turn.parts for turn in record.turns[::2]] == expected, questions
        assert record.turns[1].parts == ("A",) and record.extra == {"id": "7"} and record.source == "f:7"
        assert record.system is None and [turn.role for turn in record.turns[:2]] == ["user", "assistant"]


def test_system_by_key_or_turn():
    turn = {"role": "system", "content": [{"type": "text", "text": "S"}]}
    raws = [{key: "S", "conversations": talk("a")} for key in ("system", "system_prompt")]
    for raw in (
        *raws,
        {"conversations": [{"from": "system", "value": "S"}, *talk("a")]},
        {"messages": [turn, *talk("a")]},
    ):
        record = parse_record(raw, "f:7")
        assert record.system == "S" and len(record.turns) == 2
