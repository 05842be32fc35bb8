"""Preference pairs of every form are the same pair; what isn't one is refused with its place."""

import pytest

from xtuner_plugins.datasets import RecordError
from xtuner_plugins.datasets.records.pairs import PairRecord, parse_pair
from xtuner_plugins.datasets.records.records import Medium

ASKED = [{"role": "user", "content": "<image>\nWhat?"}]
CAT, DOG = ({"role": "assistant", "content": f"A {name}."} for name in ("cat", "dog"))
TALK = [
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "<image>\nWhat?"},
]
TEXTS = {"chosen": "A cat.", "rejected": "A dog."}
FORMS = {
    "mmpr": {"question": "<image>\nWhat?", **TEXTS},
    "prompt": {"prompt": ASKED, **TEXTS},
    "alpaca": {"instruction": "<image>", "input": "What?", **TEXTS},
    "ranking": {
        "conversations": TALK,
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
    },
    "swift": {"messages": [*ASKED, CAT], "rejected_response": "A dog."},
    "swift messages": {"messages": [*ASKED, CAT], "rejected_messages": [*ASKED, DOG]},
    "swift query": {
        "query": "<image>\nWhat?",
        "history": [["Hi", "Hello"]],
        "response": "A cat.",
        "rejected_response": "A dog.",
    },
    "trl": {"chosen": [*ASKED, CAT], "rejected": [*ASKED, DOG | {"content": [{"type": "text", "text": "A dog."}]}]},
}


def test_every_form_gives_the_same_pair():
    for name, form in FORMS.items():
        raw = {"image": "a.jpg", "system": "Be short.", **form}
        before = repr(raw)
        record = parse_pair(raw, "a.jsonl:1")
        assert isinstance(record, PairRecord) and repr(raw) == before, name
        *history, question, chosen, rejected = record.turns
        assert (chosen.text, rejected.text) == ("A cat.", "A dog.") and chosen.supervised and rejected.supervised
        assert [part for part in question.parts if isinstance(part, Medium)] == [Medium("image", "a.jpg")]
        assert question.text.strip() == "What?"
        assert [turn.text for turn in history] == (["Hi", "Hello"] if name in ("ranking", "swift query") else [])
        assert not any(turn.supervised for turn in history)
        one, other = record.sides()
        assert one.turns[-1].text == "A cat." and one.turns[:-1] == other.turns[:-1] and one.system == "Be short."
        assert other.turns[-1].text == "A dog." and len(record.media) == 1 and other.system == "Be short."


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


def test_unusable_pairs_are_refused_with_their_place():
    for reason, raw in BAD.items():
        with pytest.raises(RecordError) as refused:
            parse_pair(raw, "b.jsonl:7")
        assert refused.value.reason == reason and str(refused.value).startswith("b.jsonl:7")


def test_answers_of_very_different_length_are_warned_about():
    record = parse_pair({"prompt": "a", "chosen": "b" * 900, "rejected": "c" * 10}, "a:1")
    assert [warning.reason for warning in record.warnings] == ["far_apart"]
    assert not parse_pair({"prompt": "a", "chosen": "no " * 20, "rejected": "c"}, "a:1").warnings
