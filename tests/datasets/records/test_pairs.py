"""Preference pairs of every form are the same pair; what isn't one is refused with its place."""

import pytest

from xtuner_plugins.datasets import RecordError
from xtuner_plugins.datasets.records.pairs import PairRecord, parse_pair
from xtuner_plugins.datasets.records.records import Medium

ASKED = [{"role": "user", "content": "<image>\nWhat?"}]
CAT, DOG = ({"role": "assistant", "content": f"A {name}."} for name in ("cat", "dog"))
HI = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
TEXTS = {"chosen": "A cat.", "rejected": "A dog."}
TURNS = {side: {"from": "gpt", "value": text} for side, text in TEXTS.items()}
QUERY = {"query": "<image>\nWhat?", "history": [["Hi", "Hello"]], "response": "A cat.", "rejected_response": "A dog."}
PARTS = DOG | {"content": [{"type": "text", "text": "A dog."}]}
FORMS = {
    "mmpr": {"question": "<image>\nWhat?", **TEXTS},
    "prompt": {"prompt": ASKED, **TEXTS},
    "alpaca": {"instruction": "<image>", "input": "What?", **TEXTS},
    "ranking": {"conversations": [*HI, {"from": "human", "value": "<image>\nWhat?"}], **TURNS},
    "swift": {"messages": [*ASKED, CAT], "rejected_response": "A dog."},
    "swift messages": {"messages": [*ASKED, CAT], "rejected_messages": [*ASKED, DOG]},
    "swift query": QUERY,
    "lists": {"prompt": ASKED, "chosen": [CAT], "rejected": [DOG]},
    "trl": {"chosen": [*ASKED, CAT], "rejected": [*ASKED, PARTS]},
}
BAD = {
    "no_pair": {"prompt": "a", "chosen": "b"},
    "empty_answer": {"prompt": "a", "chosen": "b", "rejected": " "},
    "equal_answers": {"prompt": "a", "chosen": "b", "rejected": "b\n"},
    "no_prompt": {"chosen": [CAT], "rejected": [DOG]},
    "two_prompts": {"chosen": [*ASKED, CAT], "rejected": [{"role": "user", "content": "x"}, DOG]},
    "two_formats": {"prompt": "a", "question": "a", "chosen": "b", "rejected": "c"},
    "pair_answer": {"prompt": "a", "chosen": "b", "rejected": ["c", "d"]},
    "record_type": ["prompt"],
}


def test_every_form_gives_the_same_pair_and_others_are_refused_with_their_place():
    for name, form in FORMS.items():
        raw = {"image": "a.jpg", "system": "Be short.", **form}
        before = repr(raw)
        record = parse_pair(raw, "a.jsonl:1")
        assert isinstance(record, PairRecord) and repr(raw) == before, name
        *history, question, chosen, rejected = record.turns
        assert chosen.supervised and rejected.supervised and not any(turn.supervised for turn in history)
        assert record.media == [Medium("image", "a.jpg")] and question.text.strip() == "What?"
        assert [turn.text for turn in history] == (["Hi", "Hello"] if name in ("ranking", "swift query") else [])
        for side, answer in zip(record.sides(), TEXTS.values(), strict=True):
            assert side.turns[-1].text == answer and side.turns[:-1] == record.turns[:-2]
            assert side.system == "Be short."
    for reason, raw in BAD.items():
        with pytest.raises(RecordError) as refused:
            parse_pair(raw, "b.jsonl:7")
        assert refused.value.reason == reason and str(refused.value).startswith("b.jsonl:7")
