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

from ..errors import MediaError
from ..processes import die_with_parent, num_cores, quiet_imports
from .opening import open_session
from .questions import Lengths, Question, Unusable

if TYPE_CHECKING:
    from .session import ChatSession

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


def answer_all(job: Job, questions: Sequence[Question], lengths: Lengths) -> Iterator[Answered]:
    """Each question with its answer, or with the reason why there is none, in the order in which they are ready.

    Raises:
        ValueError: The model can't be opened, or a setting is impossible.
        RuntimeError: Out of memory, or a process was killed.
    """
    batches, unusable = plan_batches(questions, lengths, job.batch_size)
    yield from unusable
    if job.processes == 1 and batches:
        session = job.open()
        for batch in batches:
            yield from answer_batch(session, batch, job.generation)
    elif batches:
        yield from _answer_in_processes(job, batches)


def _answer_in_processes(job: Job, batches: Sequence[Sequence[Question]]) -> Iterator[Answered]:
    context = get_context("spawn")  # a forked process can't use CUDA
    pool = ProcessPoolExecutor(job.processes, context, initializer=_begin, initargs=(job, context.Value("i", 0)))
    try:
        for done in as_completed([pool.submit(_answer, batch) for batch in batches]):
            yield from done.result()
    except BrokenProcessPool:
        told = "out of memory?); try fewer --processes or a smaller --batch-size"
        raise RuntimeError(f"a process was killed or could not start ({told}") from None
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
    """The answers of one batch; where a question can't be asked, which shows before any is, each half is a batch."""
    items = [(question.text, question.paths) for question in batch]
    try:
        return list(zip(batch, session.answers(items, batch_size=len(items), **generation), strict=True))
    except ValueError as error:
        if half := len(batch) // 2:
            return [found for part in (batch[:half], batch[half:]) for found in answer_batch(session, part, generation)]
        where = "" if isinstance(error, MediaError) else f"question {batch[0].id}: "  # others name no file
        return [(batch[0], Unusable(batch[0].id, f"{where}{error}"))]


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
