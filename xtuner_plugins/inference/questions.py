"""What is asked: a question, or why it can't be asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        id: Names the answer; unique among the questions.
        text: The question; may hold ``<image>`` for each image.
        images: Their names, as the folder or the record gives them.
        paths: Their files.
    """

    id: str
    text: str
    images: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unusable:
    """A question that can't be asked, and why; the message names the file or the line."""

    id: str
    message: str
