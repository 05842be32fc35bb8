import pytest

from xtuner_plugins.datasets.errors import RecordError
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.records.rows import to_record

ASK, ANSWER = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}


def test_a_null_is_an_absent_key():
    row = {"image": None, "conversations": [ASK | {"weight": None}, ANSWER | {"weight": 1}], "system": None}
    assert to_record(row, 0, "f:1") == {"conversations": [ASK, ANSWER | {"weight": 1}]}
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Q"}]
    row = {"image": "a", "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A"}]}
    assert parse_record(to_record(row, 1, "f:1"), "f:1").media[0].name == "a"


@pytest.mark.parametrize(
    "turns",
    [
        '[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]',
        {"from": ["human", "gpt"], "value": ["Q", "A"]},
    ],
)
def test_other_forms_of_turns(turns):
    assert to_record({"conversations": turns}, 0, "f:1") == {"conversations": [ASK, ANSWER]}


def test_texts_have_their_images_in_front():
    texts = [{"user": "Q", "assistant": "A", "source": "s"}, {"user": "R", "assistant": "B"}]
    found = to_record({"images": ["a", "b"], "texts": texts}, 2, "f:1")
    assert [turn["value"] for turn in found["conversations"]] == ["<image>\n<image>\nQ", "A", "R", "B"]
    assert [part.name for part in parse_record(found, "f:1").media] == ["a", "b"]
    placed = to_record({"images": ["a"], "texts": [{"user": "Q <image>", "assistant": "A"}]}, 1, "f:1")
    assert placed["conversations"][0]["value"] == "Q <image>"
    assert to_record({"texts": []}, 0, "f:1") == {"conversations": []}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"conversations": "[1,"}, "not JSON"),
        ({"conversations": {"from": ["human"], "value": ["Q", "A"]}}, "lists of several lengths"),
        ({"conversations": {"from": 1}}, "lists of several lengths"),
        ({"texts": [{"user": "Q", "assistant": None}]}, "no text for user and assistant at place 1"),
        ({"texts": "Q"}, "no text for user and assistant"),
        ({"texts": [None]}, "no text for user and assistant"),
        ({"texts": [], "messages": []}, "both 'texts' and"),
    ],
)
def test_what_cannot_be_read_says_where(row, message):
    with pytest.raises(RecordError, match=f"^f:1: .*{message}"):
        to_record(row, 1, "f:1")
