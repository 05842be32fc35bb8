"""Answers many questions, in batches of like length.

Questions are sorted by their planned length, counted from the headers of their images, longest first: a batch has
little padding, and a batch that is too large for the memory shows at once. Among questions of about the same length,
those about the same image come together: a batch encodes an image once. An image that can't be read takes out its own
question, not the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import MediaError
from .opening import open_session
from .questions import Lengths, Question, Unusable

if TYPE_CHECKING:
    from .session import ChatSession

ALIKE = math.log(1.25)  # lengths of at most this ratio are about the same
Answered = tuple[Question, "str | Unusable"]


@dataclass(frozen=True)
class Job:
    """How questions are answered.

    Attributes:
        model: As for `open_session`.
        checkpoint: Likewise.
        opening: Options of `open_session`.
        generation: Options of `ChatSession.answers`.
        batch_size: Most questions per batch.
    """

    model: str
    checkpoint: str | None = None
    opening: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1

    def open(self) -> ChatSession:
        """Its session; errors as for `open_session`."""
        from transformers.utils import logging

        logging.set_verbosity_error()
        return open_session(self.model, self.checkpoint, **self.opening)


def answer_all(job: Job, questions: Sequence[Question], lengths: Lengths) -> Iterator[Answered]:
    """Each question with its answer, or with the reason why there is none, in the order in which they are ready.

    Raises:
        ValueError: The model can't be opened, or a setting is impossible.
        RuntimeError: Out of memory.
    """
    batches, unusable = plan_batches(questions, lengths, job.batch_size)
    yield from unusable
    session = job.open() if batches else None
    for batch in batches:
        yield from answer_batch(session, batch, job.generation)


def plan_batches(
    questions: Iterable[Question], lengths: Lengths, batch_size: int
) -> tuple[list[list[Question]], list[Answered]]:
    """Batches of questions of like length, the longest first, and the questions whose images can't be opened."""
    planned, unusable = [], []
    for question in questions:
        try:
            length = lengths.planned(question)
            alike = math.log1p(length) // ALIKE
            planned.append(((-alike, question.paths, -length), question))
        except MediaError as error:
            unusable.append((question, Unusable(question.id, str(error))))
    ordered = [question for _, question in sorted(planned, key=lambda pair: pair[0])]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)], unusable


def answer_batch(session: ChatSession, batch: Sequence[Question], generation: Mapping[str, Any]) -> list[Answered]:
    """The answers of one batch; where a question can't be asked, which shows before any is, each half is a batch."""
    items = [(question.text, question.paths) for question in batch]
    try:
        return list(zip(batch, session.answers(items, batch_size=len(items), **generation), strict=True))
    except ValueError as error:
        if half := len(batch) // 2:
            return [found for part in (batch[:half], batch[half:]) for found in answer_batch(session, part, generation)]
        where = "" if isinstance(error, MediaError) else f"question {batch[0].id}: "  # others name no file
        return [(batch[0], Unusable(batch[0].id, f"{where}{error}"))]
