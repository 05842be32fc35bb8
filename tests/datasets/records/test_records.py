import copy

import pytest

from xtuner_plugins.datasets.records.records import Medium, parse_record


def turns(*texts, keys=("from", "value"), roles=("human", "gpt")):
    return [{keys[0]: roles[i % 2], keys[1]: text} for i, text in enumerate(texts)]


def parse(**raw):
    return parse_record(raw, "f:7")


def test_llava_record():
    raw = {"id": "7", "image": "a/b.jpg", "conversations": turns("<image>\nWhat?", "A bus.", "Color?", "Red.")}
    before = copy.deepcopy(raw)
    record = parse_record(raw, "f:7")
    assert raw == before  # reading never modifies
    assert [turn.role for turn in record.turns] == ["user", "assistant"] * 2
    assert record.turns[0].parts == (Medium("image", "a/b.jpg"), "\nWhat?")
    assert [turn.text for turn in record.turns[1:]] == ["A bus.", "Color?", "Red."]
    assert record.system is None and record.extra == {"id": "7"} and record.source == "f:7"


def test_single_image_without_placeholder_stands_in_front():
    record = parse(image="a.jpg", conversations=turns("What?", "A bus."))
    assert record.turns[0].parts == (Medium("image", "a.jpg"), "\n", "What?")


def test_placeholder_in_a_later_turn_stays_there():
    record = parse(image="a.jpg", conversations=turns("Hi", "Hello.", "See <image> here", "Yes."))
    assert record.turns[0].parts == ("Hi",)
    assert record.turns[2].parts == ("See ", Medium("image", "a.jpg"), " here")


def test_several_images_fill_placeholders_in_order():
    record = parse(image=["a", "b", "c"], conversations=turns("<image><image>\n1?", "Yes.", "<image>", "No."))
    assert [medium.name for medium in record.media] == ["a", "b", "c"]


def test_messages_with_strings_and_parts():
    content = [
        {"type": "text", "text": "a <image> tag "},
        {"type": "image", "image": "x.png"},
        {"type": "image_url", "image_url": {"url": "y.png"}},
        "end",
    ]
    record = parse(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": "Fine."}]},
        ]
    )
    assert record.system == "Be brief."
    assert record.turns[0].parts == ("a <image> tag ", Medium("image", "x.png"), Medium("image", "y.png"), "end")
    assert record.turns[1].text == "Fine."


def test_parts_may_leave_names_to_the_records_list():
    record = parse(
        images=["x.png"],
        messages=[{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "Fine."}],
    )
    assert record.turns[0].parts == (Medium("image", "x.png"),)


@pytest.mark.parametrize(
    "raw",
    [
        {"system": "S", "conversations": turns("a", "b")},
        {"conversations": [{"from": "system", "value": "S"}, *turns("a", "b")]},
    ],
)
def test_system_by_key_or_turn(raw):
    record = parse_record(raw, "f:1")
    assert record.system == "S" and len(record.turns) == 2


def test_video_is_a_placeholder_only_when_one_is_given():
    assert parse(conversations=turns("An HTML <video>?", "Yes.")).media == []
    record = parse(video="v.mp4", conversations=turns("<video>\nWhat?", "A dog."))
    assert record.media == [Medium("video", "v.mp4")]


def test_absent_media_may_be_null_or_an_empty_list():
    for value in (None, []):
        assert parse(image=value, conversations=turns("a", "b")).media == []


def test_literal_image_in_an_answer_is_text():
    record = parse(image="a.jpg", conversations=turns("<image>\nTag?", "Write <image> in RSS."))
    assert record.turns[1].parts == ("Write <image> in RSS.",)
