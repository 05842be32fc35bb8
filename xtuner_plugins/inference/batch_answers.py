"""Answers many questions, in batches of like length, in one process or several.

Questions are sorted by their planned length, counted from the headers of their images, longest first: a batch has
little padding, and a batch that is too large for the memory shows at once. Among questions of about the same length,
those about the same image come together: a batch encodes an image once. An image that can't be read takes out its own
question, not the batch.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from ..datasets.images.media import image_size, load_image
from ..datasets.images.tiling import DynamicTiling
from ..datasets.plan.budget import first_limit
from ..errors import MediaError
from ..processes import die_with_parent, num_cores, quiet_imports
from .opening import open_session
from .questions import Question, Unusable

if TYPE_CHECKING:
    from .session import ChatSession

CHARACTERS_PER_TOKEN = 3  # of a question; only for sorting
ALIKE = 1.25  # lengths within this factor are about the same
Answered = tuple[Question, "str | Unusable"]


@dataclass(frozen=True)
class Job:
    """How questions are answered; crosses to other processes.

    Attributes:
        model: As for `open_session`.
        checkpoint: Likewise.
        opening: Options of `open_session`.
        generation: Options of `ChatSession.answers`.
        batch_size: Most questions per batch.
        processes: Each holds a model of its own; of several GPUs each takes the next.
    """

    model: str
    checkpoint: str | None = None
    opening: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    processes: int = 1

    def open(self) -> ChatSession:
        """Its session; errors as for `open_session`."""
        from transformers.utils import logging

        logging.set_verbosity_error()
        return open_session(self.model, self.checkpoint, **self.opening)


@dataclass(frozen=True)
class Lengths:
    """What the length of a prompt is counted by."""

    tiling: DynamicTiling
    tile_sharing: str
    tokens_per_tile: int

    def planned(self, question: Question) -> int:
        """Tokens of a question, about; errors as for `num_tiles`."""
        return sum(self.num_tiles(question)) * self.tokens_per_tile + len(question.text) // CHARACTERS_PER_TOKEN

    def num_tiles(self, question: Question) -> list[int]:
        """Tiles of each of its images, whose headers are read.

        Raises:
            MediaError: An image can't be opened.
        """
        tiling = self.tiling.limited(first_limit(self.tiling.max_tiles, len(question.paths), self.tile_sharing))
        return [tiling.grid(*image_size(path)).num_tiles for path in question.paths]


def lengths_of(session: ChatSession) -> Lengths:
    """What the length of a session's prompts is counted by."""
    return Lengths(session.tiling, session.tile_sharing, session.model.num_image_token)


def answer_all(job: Job, questions: Sequence[Question], lengths: Lengths) -> Iterator[Answered]:
    """Each question with its answer, or with the reason why there is none, in the order in which they are ready.

    Raises:
        ValueError: The model can't be opened, or a setting is impossible.
        RuntimeError: Out of memory, or a process was killed.
    """
    batches, unusable = plan_batches(questions, lengths, job.batch_size)
    yield from unusable
    if not batches:
        return
    if job.processes == 1:
        session = job.open()
        for batch in batches:
            yield from answer_batch(session, batch, job.generation)
        return
    context = get_context("spawn")  # a forked process can't use CUDA
    pool = ProcessPoolExecutor(job.processes, context, initializer=_begin, initargs=(job, context.Value("i", 0)))
    try:
        for done in as_completed([pool.submit(_answer, batch) for batch in batches]):
            yield from done.result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a process was killed or could not start (out of memory?); try fewer --processes or a smaller --batch-size"
        ) from None
    finally:
        workers = list(pool._processes.values())  # the pool itself would wait for batches that nobody wants any more
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()


def plan_batches(
    questions: Iterable[Question], lengths: Lengths, batch_size: int
) -> tuple[list[list[Question]], list[Answered]]:
    """Batches of questions of like length, the longest first, and the questions whose images can't be opened."""
    planned, unusable = [], []
    for question in questions:
        try:
            length = lengths.planned(question)
            alike = int(math.log(max(1, length), ALIKE))
            planned.append(((-alike, question.paths, -length), question))
        except MediaError as error:
            unusable.append((question, Unusable(question.id, str(error))))
    ordered = [question for _, question in sorted(planned, key=lambda pair: pair[0])]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)], unusable


def answer_batch(session: ChatSession, batch: Sequence[Question], generation: Mapping[str, Any]) -> list[Answered]:
    """The answers of one batch; a question that can't be asked is left out of it."""
    from .session import with_placeholders

    items, asked, results, load, lengths = [], [], [], cache(load_image), lengths_of(session)
    for question in batch:
        try:
            images = [load(path) for path in question.paths]
            text = with_placeholders(question.text, len(images))
            session.checked_ids(text, lengths.num_tiles(question))
        except ValueError as error:
            where = "" if isinstance(error, MediaError) else f"question {question.id}: "  # others name no file
            results.append((question, Unusable(question.id, f"{where}{error}")))
        else:
            items.append((text, images))
            asked.append(question)
    answers = session.answers(items, batch_size=max(1, len(items)), **generation)
    return [*results, *zip(asked, answers, strict=True)]


def _begin(job: Job, counter) -> None:
    """Readies a process; the first batch opens the model, because a pool hides what goes wrong here."""
    global _job, _session
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the process that waits for this one
    quiet_imports()
    import torch

    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    if job.opening.get("device", "auto") == "auto" and torch.cuda.device_count() > 1:
        job = replace(job, opening={**job.opening, "device": f"cuda:{number % torch.cuda.device_count()}"})
    torch.set_num_threads(max(1, num_cores() // job.processes))
    _job, _session = job, cache(job.open)


def _answer(batch: Sequence[Question]) -> list[Answered]:
    return answer_batch(_session(), batch, _job.generation)
