import pytest

from xtuner_plugins.datasets import RecordError
from xtuner_plugins.datasets.records.pairs import PairRecord, parse_pair
from xtuner_plugins.datasets.records.records import Medium

ASKED = [{"role": "user", "content": "<image>\nWhat?"}]
TALK = [
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "<image>\nWhat?"},
]
FORMS = {
    "mmpr": {"image": "a.jpg", "question": "<image>\nWhat?", "chosen": "A cat.", "rejected": "A dog."},
    "prompt": {"images": ["a.jpg"], "prompt": ASKED, "chosen": "A cat.", "rejected": "A dog."},
    "alpaca": {"image": "a.jpg", "instruction": "<image>", "input": "What?", "chosen": "A cat.", "rejected": "A dog."},
    "ranking": {
        "images": ["a.jpg"],
        "conversations": TALK,
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
    },
    "swift": {
        "images": ["a.jpg"],
        "messages": [*ASKED, {"role": "assistant", "content": "A cat."}],
        "rejected_response": "A dog.",
    },
    "swift messages": {
        "images": ["a.jpg"],
        "messages": [*ASKED, {"role": "assistant", "content": "A cat."}],
        "rejected_messages": [*ASKED, {"role": "assistant", "content": "A dog."}],
    },
    "swift query": {
        "images": ["a.jpg"],
        "query": "<image>\nWhat?",
        "history": [["Hi", "Hello"]],
        "response": "A cat.",
        "rejected_response": "A dog.",
    },
    "trl": {
        "images": ["a.jpg"],
        "chosen": [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
        "rejected": [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}],
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_pair(name):
    raw = FORMS[name]
    before = repr(raw)
    record = parse_pair(raw, "a.jsonl:1")
    assert isinstance(record, PairRecord) and repr(raw) == before
    *history, question, chosen, rejected = record.turns
    assert (chosen.text, rejected.text) == ("A cat.", "A dog.") and chosen.supervised and rejected.supervised
    assert [part for part in question.parts if isinstance(part, Medium)] == [Medium("image", "a.jpg")]
    assert question.text.strip() == "What?"
    assert [turn.text for turn in history] == (["Hi", "Hello"] if name in ("ranking", "swift query") else [])
    assert not any(turn.supervised for turn in history if turn.role == "assistant")
    one, other = record.sides()
    assert [turn.text for turn in one.turns[-1:]] == ["A cat."] and one.turns[:-1] == other.turns[:-1]
    assert other.turns[-1].text == "A dog." and len(record.media) == 1


def test_text_alone_and_a_system_message():
    record = parse_pair({"system": "Be short.", "prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, "a:1")
    assert record.system == "Be short." and not record.media
    assert record.sides()[1].system == "Be short."


BAD = {
    "no_pair": {"prompt": "a", "chosen": "b"},
    "empty_answer": {"prompt": "a", "chosen": "b", "rejected": " "},
    "equal_answers": {"prompt": "a", "chosen": "b", "rejected": "b\n"},
    "no_prompt": {"chosen": "b", "rejected": "c"},
    "two_prompts": {
        "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "rejected": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "c"}],
    },
    "two_formats": {"prompt": "a", "question": "a", "chosen": "b", "rejected": "c"},
    "pair_answer": {"prompt": "a", "chosen": "b", "rejected": ["c", "d"]},
    "history": {"query": "a", "history": ["x"], "response": "b", "rejected_response": "c"},
    "image_count": {"prompt": "<image> a", "chosen": "b", "rejected": "c"},
    "turn_order": {"prompt": [{"role": "assistant", "content": "a"}], "chosen": "b", "rejected": "c"},
    "record_type": ["prompt"],
    "conversations_type": {"messages": "a", "rejected": "c"},
}


@pytest.mark.parametrize("reason", BAD)
def test_unusable_pairs_are_refused_with_their_place(reason):
    with pytest.raises(RecordError) as refused:
        parse_pair(BAD[reason], "b.jsonl:7")
    assert refused.value.reason == reason and str(refused.value).startswith("b.jsonl:7")


def test_answers_of_very_different_length_are_warned_about():
    record = parse_pair({"prompt": "a", "chosen": "b" * 900, "rejected": "c" * 10}, "a:1")
    assert [warning.reason for warning in record.warnings] == ["far_apart"]
    assert not parse_pair({"prompt": "a", "chosen": "no " * 20, "rejected": "c"}, "a:1").warnings
