"""What is asked: a question with its known answers, how long it is, or why it can't be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..datasets.images.media import image_size
from ..datasets.images.tiling import DynamicTiling
from ..datasets.plan.budget import first_limit

CHARACTERS_PER_TOKEN = 3  # of a question; only for sorting


@dataclass(frozen=True)
class Question:
    """What is asked, and what the annotators answered.

    Attributes:
        id: Names the answer; unique among the questions.
        text: What the model is asked, exactly; may hold ``<image>`` for each image.
        images: Their names, as the folder or the record gives them.
        paths: Their files.
        expected: The right answers, or those of all annotators, in the file's order.
        facts: Whatever else a metric or a table needs: `category`, `choices` (letter to text), `group` (questions that
            count together, such as the rotations of a circular evaluation), ... Values are JSON.
        place: `file:line` for messages.
    """

    id: str
    text: str
    images: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True)
class Unusable:
    """A question that can't be asked, and why; the message names the file or the line."""

    id: str
    message: str


@dataclass(frozen=True)
class Lengths:
    """What the length of a model's prompts is counted by."""

    tiling: DynamicTiling
    tokens_per_tile: int

    def planned(self, question: Question) -> int:
        """Tokens of a question, about, from the headers of its images; `MediaError` where one can't be opened."""
        tiling = self.tiling.limited(first_limit(self.tiling.max_tiles, len(question.paths)))
        num_tiles = sum(tiling.grid(*image_size(path)).num_tiles for path in question.paths)
        return num_tiles * self.tokens_per_tile + len(question.text) // CHARACTERS_PER_TOKEN
