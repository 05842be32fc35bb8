"""What is asked of a model, and what the annotators answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..inference.questions import Question


@dataclass(frozen=True)
class Item:
    """A question, with the known answers if there are any.

    Attributes:
        question: What the model is asked, exactly: the prompt's suffix ("Answer with a single word.") is part of it.
        expected: The right answers, or those of all annotators, in the file's order.
        facts: Whatever else a metric or a table needs: `category`, `choices` (letter to text), `group` (questions that
            count together, such as the rotations of a circular evaluation), ... Values are JSON.
        place: `file:line` for messages; '' where the item comes from no file.
    """

    question: Question
    expected: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
