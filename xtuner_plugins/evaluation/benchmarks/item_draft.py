"""What a reader takes out of a row, and how it becomes an item."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ...datasets.errors import DataError, RecordError
from ...datasets.images.media import ImageFolder
from ...inference.questions import Question
from ..items import Item
from .kinds import Kind, fill


@dataclass
class Draft:
    """An item before its prompt and its images are known.

    Attributes:
        id: Of the question; '' takes its line.
        question: Without the prompt around it.
        answers: The right ones.
        images: For each image the names that it may have in the image folder, the most likely first.
        paths: Images that have been written out already; then `images` is empty.
        choices: Letter to text.
        hint: Context that is asked before the question.
        facts: Of the item, without the choices.
    """

    id: str
    question: str
    answers: Sequence[str]
    images: Sequence[Sequence[str]] = ()
    paths: Sequence[str] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def lettered(texts: Sequence[object], place: str) -> dict[str, str]:
    """Choices with the letters A, B, C ...

    Raises:
        RecordError: There are more than letters.
    """
    if len(texts) > len(string.ascii_uppercase):
        raise RecordError("choices", f"{len(texts)} choices", "there may be 26", place)
    return {letter: str(text) for letter, text in zip(string.ascii_uppercase, texts, strict=False)}


def text_of(values: Mapping[str, Any], key: str, place: str) -> str:
    """A text (or number) of a row that must be there.

    Raises:
        RecordError: It isn't.
    """
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise RecordError(key, f"no {key!r}", "every row needs one", place)
    return str(value)


def texts_of(values: Mapping[str, Any], key: str, place: str) -> list[str]:
    """A list of texts, or one text, of a row; [] where the key is missing.

    Raises:
        RecordError: It is something else.
    """
    value = values.get(key)
    if value is None:
        return []
    found = value if isinstance(value, list) else [value]
    if any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in found):
        raise RecordError(key, f"{key!r} is no text and no list of texts", "correct it", place)
    return [str(one) for one in found]


def build(draft: Draft, kind: Kind, prompt: str | None, folder: ImageFolder, place: str) -> Item:
    """The item.

    Raises:
        DataError: An image that can't be named or isn't there.
    """
    choices = "\n".join(f"{letter}. {text}" for letter, text in draft.choices.items())
    fields = {"question": draft.question, "hint": draft.hint, "choices": choices}
    text = fill(prompt or kind.prompt_for("".join(fields.values())), fields)
    paths = list(draft.paths) or [_find(names, folder, place) for names in draft.images]
    names = [os.path.basename(path) for path in draft.paths] or [names[0] for names in draft.images]
    facts = ({"choices": dict(draft.choices)} if draft.choices else {}) | draft.facts
    question = Question(draft.id or _number(place), text, tuple(names), tuple(paths))
    return Item(question, tuple(draft.answers), facts, place)


def _number(place: str) -> str:
    """What an item without an id is called: "line 7" of "own.jsonl:7", "entry 3" of "own.json: entry 3"."""
    end = place.rpartition(":")[2].strip()
    return f"line {end}" if end.isdigit() else end


def _find(names: Sequence[str], folder: ImageFolder, place: str) -> str:
    """The path of the first of these names that is there."""
    first: DataError | None = None
    for name in names:
        try:
            path = folder.resolve(name)
        except DataError as error:
            first = first or error
            continue
        if os.path.isfile(path):
            return path
    if first is not None:
        raise first
    path = folder.resolve(names[0])
    raise RecordError("image_missing", f"image {path!r} isn't there", "give the image folder", place)


def shortened(name: str) -> list[str]:
    """A name, and the same without its leading folders, one after the other: files name images from other folders."""
    parts = PurePosixPath(name).parts
    return [name, *("/".join(parts[start:]) for start in range(1, len(parts)))]
