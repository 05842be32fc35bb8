"""A file of one's own: JSON lines, or TSV as VLMEvalKit lays it out.

    {"id": "r-17", "image": "receipt.jpg", "question": "What is the total?", "answer": "12.80"}
    {"id": "r-18", "images": ["a.jpg", "b.jpg"], "question": "Which is older?", "choices": ["the first", "the second"],
     "answer": "A", "category": "order", "group": "pair 9"}

A record of the training form with one question, `{"image": ..., "conversations": [...]}`, asks that question and
expects its answer. `answers` takes a list of right answers. `choices` is a list or an object of letters; the answer is
then a letter, or the text of one of them. `width`, `height`, `frame` and `answer_frame` are for boxes (metric `iou`).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import Any

from ...datasets.errors import DataError, RecordError
from .files import Row
from .item_draft import Draft, lettered, text_of, texts_of

FACTS = ("category", "group", "width", "height", "frame", "answer_frame")
TURNS = "conversations"
KEYS = ("id", "image", "images", "question", "answer", "answers", "choices", "hint", *FACTS)


def drafts(rows: Iterator[Row]) -> Iterator[tuple[str, Draft | DataError]]:
    """A draft, or what is wrong, for each row, with its place."""
    for row in rows:
        try:
            yield row.place, row.error or _draft(row.values, row.place)
        except RecordError as error:
            yield row.place, error


def _draft(values: dict[str, Any], place: str) -> Draft:
    if TURNS in values:
        values = _asked(values, place)
    if unknown := sorted(values.keys() - set(KEYS)):
        raise RecordError("key", f"unknown key {unknown[0]!r}", f"the keys are {', '.join(KEYS)}", place)
    for one, many in (("image", "images"), ("answer", "answers")):
        if one in values and many in values:
            raise RecordError(one, f"both {one!r} and {many!r}", "write one of the two", place)
    answers = texts_of(values, "answers", place) or texts_of(values, "answer", place)
    choices = read_choices(values.get("choices"), place)
    images = texts_of(values, "images", place) or texts_of(values, "image", place)
    return Draft(
        text_of(values, "id", place) if "id" in values else "",
        text_of(values, "question", place),
        [as_letter(answer, choices) for answer in answers],
        [[name] for name in images],
        choices=choices,
        hint="".join(texts_of(values, "hint", place)),
        facts={key: values[key] for key in FACTS if values.get(key) is not None},
    )


def _asked(values: dict[str, Any], place: str) -> dict[str, Any]:
    """A record of the training form as one of ours."""
    turns = values[TURNS]
    known = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    said = [turn.get("value") for turn in turns if turn.get("from") != "system"] if known else []
    if len(said) != 2 or not all(isinstance(text, str) for text in said):
        problem = f"{TURNS!r} is not one question with its answer"
        raise RecordError(TURNS, problem, "only records of a single turn can be evaluated", place)
    images = texts_of(values, "image", place)
    question = re.sub(r"\s*<image>\s*", " ", said[0]).strip() if len(images) <= 1 else said[0]
    kept = {"id": values["id"]} if "id" in values else {}
    return {**kept, "images": images, "question": question, "answer": said[1]}


def read_choices(value: object, place: str) -> dict[str, str]:
    """Choices as letter to text, from a list or an object; {} for None.

    Raises:
        RecordError: They are neither.
    """
    if value is None:
        return {}
    if isinstance(value, list) and value:
        return lettered(value, place)
    if isinstance(value, dict) and value and all(key in string.ascii_uppercase for key in value):
        return {letter: str(text) for letter, text in value.items()}
    raise RecordError("choices", "'choices' is no list and no object of letters", 'write ["red", "blue"]', place)


def as_letter(answer: str, choices: dict[str, str]) -> str:
    """The letter of an answer that is the text of exactly one choice; other answers as they are."""
    if answer in choices:
        return answer
    letters = [letter for letter, text in choices.items() if text.strip().lower() == answer.strip().lower()]
    return letters[0] if len(letters) == 1 else answer
