"""A record of our forms, as a checked conversation."""

import base64

from xtuner_plugins.datasets.images.media import Blob
from xtuner_plugins.datasets.records.records import Medium, parse_record

A, B, C, X, Y = (Medium("image", name) for name in "abcxy")
PART = [{"type": "image"}, {"type": "image_url", "image_url": {"url": "y"}}, "end <image>"]
VIDEO = Medium("video", "v.mp4")
PLACES = [  # questions, media, parts of the questions
    (["<image>\nWhat?"], {"image": "a"}, [(A, "\nWhat?")]),
    (["What?"], {"image": "a"}, [(A, "\n", "What?")]),
    (["Hi", "See <image> here"], {"image": "a"}, [("Hi",), ("See ", A, " here")]),
    (["<image><image>1", "<image>"], {"images": list("abc")}, [(A, B, "1"), (C,)]),
    (["<video>\nWhat?"], {"video": "v.mp4"}, [(VIDEO, "\nWhat?")]),
    *((["An HTML <video>?"], media, [("An HTML <video>?",)]) for media in ({}, {"image": None}, {"image": []})),
    ([PART], {"image": "x"}, [(X, Y, "end <image>")]),
]


def talk(*questions):
    return [turn for asked in questions for turn in ({"role": "user", "content": asked}, {"from": "bot", "value": "A"})]


def test_where_media_stand_and_the_system_message():
    for questions, media, expected in PLACES:
        record = parse_record({"id": "7", "messages": talk(*questions), **media}, "f:7")
        assert [turn.parts for turn in record.turns[::2]] == expected, questions
        assert record.turns[1].parts == ("A",) and record.extra == {"id": "7"} and record.source == "f:7"
        assert record.system is None and [turn.role for turn in record.turns[:2]] == ["user", "assistant"]
    raws = [{key: "S", "conversations": talk("a")} for key in ("system", "system_prompt")]
    for turn in ({"from": "system", "value": "S"}, {"role": "system", "content": [{"type": "text", "text": "S"}]}):
        raws.append({"messages": [turn, *talk("a")]})
    for record in (parse_record(raw, "f:7") for raw in raws):
        assert record.system == "S" and len(record.turns) == 2


def test_images_that_a_record_holds_itself():
    url = "data:image/png;base64," + base64.b64encode(b"bytes").decode()
    part = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Q"}]
    held = [{"image": each, "messages": talk("Q")} for each in (url, b"bytes", {"bytes": b"bytes", "path": "a.jpg"})]
    for raw in (*held, {"messages": talk(part)}):
        (medium,) = parse_record(raw, "f:1").media
        assert isinstance(medium.name, Blob) and medium.name.data == b"bytes" and len(str(medium.name)) < 80
    two = {"images": [b"a", b"b"], "messages": talk("<image><image>Q")}
    assert [str(medium.name) for medium in parse_record(two, "f:7").media] == [f"image {n} of line 7" for n in (1, 2)]
    assert parse_record(held[2] | {"image": {"bytes": None, "path": "a.jpg"}}, "f:1").media[0].name == "a.jpg"
