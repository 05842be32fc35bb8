"""Answers many questions, in batches of like length, in one process or several.

Questions are sorted by their planned length, counted from the headers of their images, longest first: a batch has
little padding, and a batch that is too large for the memory shows at once. Among questions of about the same length,
those about the same image come together: a batch encodes an image once. An image that can't be read takes out its own
question, not the batch.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from ..datasets.images.media import image_size, load_image
from ..datasets.images.tiling import DynamicTiling, Grid
from ..datasets.plan.budget import first_limit
from ..errors import MediaError
from ..processes import die_with_parent, num_cores
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
        processes: Each holds a model of its own.
        prepare: Called first in each further process.
    """

    model: str
    checkpoint: str | None = None
    opening: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    processes: int = 1
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True)
class Lengths:
    """What the length of a prompt is counted by: facts of an open session."""

    tiling: DynamicTiling
    tile_sharing: str
    tokens_per_tile: int

    def planned(self, question: Question) -> int:
        """Tokens of a question, about; the images' headers are read.

        Raises:
            MediaError: An image can't be opened.
        """
        tiles = sum(grid.num_tiles for grid in self.grids(question))
        return tiles * self.tokens_per_tile + len(question.text) // CHARACTERS_PER_TOKEN

    def grids(self, question: Question) -> list[Grid]:
        """How each of its images is cut; the images' headers are read.

        Raises:
            MediaError: An image can't be opened.
        """
        tiling = self.tiling.limited(first_limit(self.tiling.max_tiles, len(question.paths), self.tile_sharing))
        return [tiling.grid(*image_size(path)) for path in question.paths]


def answer_all(job: Job, questions: Sequence[Question]) -> Iterator[Answered]:
    """Each question with its answer, or with the reason why there is none, in the order in which they are ready.

    Raises:
        ValueError: The model can't be opened, or a setting is impossible.
        RuntimeError: Out of memory, or a process was killed.
    """
    if job.processes == 1:
        session = _open(job)
        batches, unusable = plan_batches(questions, lengths_of(session), job.batch_size)
        yield from unusable
        for batch in batches:
            yield from answer_batch(session, batch, job.generation)
        return
    context = get_context("spawn")  # a forked process can't use CUDA
    counter = context.Value("i", 0)
    pool = ProcessPoolExecutor(job.processes, context, initializer=_start_worker, initargs=(job, counter))
    try:
        yield from _answer_in(pool, job, questions)
    except BrokenProcessPool:
        raise RuntimeError(
            "a process was killed or could not start (out of memory?); try fewer --processes or a smaller --batch-size"
        ) from None
    finally:
        workers = list(pool._processes.values())  # the pool itself would wait for batches that nobody wants any more
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()


def _answer_in(pool: ProcessPoolExecutor, job: Job, questions: Sequence[Question]) -> Iterator[Answered]:
    lengths = pool.submit(_worker_lengths).result()
    batches, unusable = plan_batches(questions, lengths, job.batch_size)
    yield from unusable
    left, running = iter(batches), set()
    while True:
        while len(running) < 2 * job.processes and (batch := next(left, None)):
            running.add(pool.submit(_worker_answers, batch))
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for each in done:
            yield from each.result()


def plan_batches(
    questions: Iterable[Question], lengths: Lengths, batch_size: int
) -> tuple[list[list[Question]], list[Answered]]:
    """Batches of questions of like length, the longest first, and the questions whose images can't be opened."""
    planned, unusable = [], []
    for question in questions:
        try:
            planned.append((lengths.planned(question), question))
        except MediaError as error:
            unusable.append((question, Unusable(question.id, str(error))))
    planned.sort(key=lambda pair: (-_size_class(pair[0]), pair[1].paths, -pair[0]))  # stable among equals
    ordered = [question for _, question in planned]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)], unusable


def _size_class(length: int) -> int:
    """The same for lengths that are about the same, higher for longer ones."""
    return int(math.log(max(1, length), ALIKE))


def answer_batch(session: ChatSession, batch: Sequence[Question], generation: Mapping[str, Any]) -> list[Answered]:
    """The answers of one batch; a question that can't be asked is left out of it."""
    from .session import with_placeholders

    items, asked, results, loaded, lengths = [], [], [], {}, lengths_of(session)
    for question in batch:
        try:
            for path in question.paths:
                loaded[path] = loaded.get(path) or load_image(path)
            images = [loaded[path] for path in question.paths]
            text = with_placeholders(question.text, len(images))
            session.checked_ids(text, [grid.num_tiles for grid in lengths.grids(question)])
            items.append((text, images))
            asked.append(question)
        except MediaError as error:
            results.append((question, Unusable(question.id, str(error))))
        except ValueError as error:  # of the text, which names no file
            results.append((question, Unusable(question.id, f"question {question.id}: {error}")))
    answers = session.answers(items, batch_size=max(1, len(items)), **generation)
    return [*results, *zip(asked, answers, strict=True)]


def _open(job: Job) -> ChatSession:
    from transformers.utils import logging

    logging.set_verbosity_error()
    return open_session(job.model, job.checkpoint, **job.opening)


def lengths_of(session: ChatSession) -> Lengths:
    """What the length of a session's prompts is counted by."""
    return Lengths(session.tiling, session.tile_sharing, session.model.num_image_token)


def _start_worker(job: Job, counter) -> None:
    """Opens the model of a process; of several GPUs it takes the next."""
    global _session, _job
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the process that waits for this one
    if job.prepare is not None:
        job.prepare()
    import torch

    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    opening = dict(job.opening)
    if opening.get("device", "auto") == "auto" and torch.cuda.device_count() > 1:
        opening["device"] = f"cuda:{number % torch.cuda.device_count()}"
    torch.set_num_threads(max(1, num_cores() // job.processes))
    _job, _session = job, None
    try:
        _session = _open(replace(job, opening=opening))
    except (ValueError, OSError, RuntimeError) as error:  # raised in the first task: the pool would hide it
        _job = error


def _worker_session() -> ChatSession:
    if isinstance(_job, Exception):
        raise _job
    return _session


def _worker_lengths() -> Lengths:
    return lengths_of(_worker_session())


def _worker_answers(batch: Sequence[Question]) -> list[Answered]:
    return answer_batch(_worker_session(), batch, _job.generation)
