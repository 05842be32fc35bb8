"""One model that answers one request at a time, and the queue before it.

Requests of one client are answered in their order; clients take turns, so that one who sends many doesn't lock out the
others::

    client A  1 2 3 4        answered:  A1 B1 A2 A3 A4
    client B  1
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..hub.prompts import token_id
from ..inference.session import MAX_NEW_TOKENS, ChatSession
from .api_messages import ApiError, ChatRequest, Limits

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """The request is accepted and its answer begins."""

    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The whole answer; `reason` is `stop` or `length`."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """There is no answer, or no more of it."""

    error: ApiError


Event = Started | Piece | Finished | Failed


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        request: What is asked.
        client: Whom the queue counts it for.
        on_event: Called from the engine's thread.
        cancelled: Set when nobody waits for the answer any more.
    """

    request: ChatRequest
    client: str
    on_event: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class FairQueue:
    """Jobs by client; clients take turns.

    Args:
        limit: Most jobs that wait or are being answered.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._running, self._closed = 0, False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return self._count()

    def put(self, job: Job) -> None:
        """Adds a job.

        Raises:
            ApiError: The queue is full or closed.
        """
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is stopping; ask again later", code="stopping")
            if self._count() >= self.limit:
                raise ApiError(
                    429,
                    f"{self.limit} requests are waiting; ask again later",
                    code="queue_full",
                    headers={"Retry-After": "5"},
                )
            self._waiting.setdefault(job.client, deque()).append(job)
            self._changed.notify()

    def take(self) -> Job | None:
        """The next job, once there is one; None when the queue is closed. The job before it counts as done."""
        with self._changed:
            self._running = 0
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            client, jobs = self._waiting.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._waiting[client] = jobs  # behind the others
            self._running = 1
            return job

    def drop(self, job: Job) -> None:
        """Removes a job that still waits."""
        with self._changed:
            jobs = self._waiting.get(job.client, ())
            if job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._waiting[job.client]

    def close(self) -> list[Job]:
        """Takes no more jobs; returns those that waited."""
        with self._changed:
            self._closed = True
            left = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
            self._changed.notify_all()
            return left

    def _count(self) -> int:
        return self._running + sum(map(len, self._waiting.values()))


class AnswerText:
    """Cuts an answer that comes in pieces at the first stop text, and white space from its ends.

    Args:
        stops: Texts before which the answer ends.

    Attributes:
        stopped: Whether a stop text was met.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops, self.stopped = stops, False
        self._held, self._begun = "", False

    def feed(self, piece: str) -> str:
        """The text that is certain by now: no possible beginning of a stop text, no white space that may be the end."""
        if self.stopped:
            return ""
        self._held += piece
        found = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
        text = self._held.rstrip()
        if not self.stopped:
            text = text[: min([len(text), *(self._beginning(stop) for stop in self.stops)])].rstrip()
        self._held = self._held[len(text) :]
        return self._take(text)

    def finish(self) -> str:
        """What was held back, when no more comes."""
        return self._take(self._held.rstrip())

    def _take(self, text: str) -> str:
        text = text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        return text

    def _beginning(self, stop: str) -> int:
        """Where the text held ends in a beginning of `stop`; its length if it doesn't."""
        length = len(self._held)
        sizes = range(min(len(stop) - 1, length), 0, -1)
        return next((length - size for size in sizes if self._held.endswith(stop[:size])), length)


class _Watch(StoppingCriteria):
    """Counts the answer's tokens, and ends it at a stop text or when the client is gone."""

    def __init__(self, job: Job, tokenizer):
        self.job, self.tokenizer = job, tokenizer
        self.num_tokens, self.last = 0, None
        # A stop text of n characters is at most n tokens; characters of several tokens need some more.
        self._tail = max(map(len, job.request.stop), default=0) + 8

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """`input_ids` [1, tokens of the answer]; returns bool [1]."""
        self.num_tokens, self.last = input_ids.shape[1], int(input_ids[0, -1])
        ends = self.job.cancelled.is_set()
        if self.job.request.stop and not ends:
            tail = self.tokenizer.decode(input_ids[0, -self._tail :], skip_special_tokens=True)
            ends = any(stop in tail for stop in self.job.request.stop)
        return torch.full((1,), ends, dtype=torch.bool, device=input_ids.device)


class Engine:
    """Answers jobs in a thread of its own.

    Args:
        session: The model. The engine has it for itself: each job replaces its conversation.
        limits: What a job may ask for.
    """

    def __init__(self, session: ChatSession, limits: Limits | None = None):
        self.session, self.limits = session, limits or Limits()
        self.queue = FairQueue(self.limits.queue)
        self._system = session.model.system_message
        self._context = getattr(session.model.config.llm_config, "max_position_embeddings", None)
        self._end_id = token_id(session.tokenizer, session.model.conv_template.stop_token)
        self._current: Job | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            ApiError: The queue is full, or the job asks for a longer answer than allowed.
        """
        job.request.answer_length(self.limits.new_tokens)
        self.queue.put(job)

    def cancel(self, job: Job) -> None:
        """Ends a job, whether it waits or is being answered; nothing happens if it is done."""
        job.cancelled.set()
        self.queue.drop(job)

    def close(self) -> None:
        """Ends all jobs and the thread."""
        for job in self.queue.close():
            job.on_event(Failed(ApiError(503, "the server is stopping; ask again later", code="stopping")))
        if (job := self._current) is not None:
            job.cancelled.set()
        self._thread.join()

    def _run(self) -> None:
        while (job := self.queue.take()) is not None:
            self._current = job
            try:
                if not job.cancelled.is_set():
                    job.on_event(self._answer(job))
            except ApiError as error:
                job.on_event(Failed(error))
            except Exception as error:
                job.on_event(Failed(_unexpected(error)))
            finally:
                self._current = None

    def _answer(self, job: Job) -> Event:
        request, session = job.request, self.session
        dialogue = request.dialogue(self.limits)
        session.model.system_message = self._system if dialogue.system is None else dialogue.system
        session.recall(dialogue.turns)
        prompt_tokens = len(session.prompt_ids(dialogue.question, dialogue.images))
        length = self._length(request, prompt_tokens)
        job.on_event(Started(prompt_tokens))

        watch, text = _Watch(job, session.tokenizer), AnswerText(request.stop)
        options = {"max_new_tokens": length, "stopping_criteria": StoppingCriteriaList([watch])}
        if request.temperature > 0:
            options |= {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p}

        def pass_on(piece: str) -> None:
            if (certain := text.feed(piece)) and request.stream:
                job.on_event(Piece(certain))

        with _seeded(request.seed, session.device):
            answer = session.ask(dialogue.question, dialogue.images, stream=pass_on, **options)
        if (rest := text.finish()) and request.stream:
            job.on_event(Piece(rest))
        whole = AnswerText(request.stop)
        answer = whole.feed(answer) + whole.finish()
        ended = whole.stopped or watch.last == self._end_id or watch.num_tokens < length
        return Finished(answer, prompt_tokens, watch.num_tokens, "stop" if ended else "length")

    def _length(self, request: ChatRequest, prompt_tokens: int) -> int:
        """Most tokens of the answer: what was asked for, else the default, as far as the model's positions go.

        Raises:
            ApiError: The prompt and the answer asked for don't fit.
        """
        asked = request.answer_length(self.limits.new_tokens)
        length = min(MAX_NEW_TOKENS, self.limits.new_tokens) if asked is None else asked
        if self._context is None:
            return length
        room = self._context - prompt_tokens
        if room < (asked or 1):
            raise ApiError(
                400,
                f"messages: {prompt_tokens} tokens of prompt and {asked or 1} of answer, but the model has "
                f"{self._context}; send fewer images or turns, or lower max_tokens",
                param="messages",
                code="context_length_exceeded",
            )
        return min(length, room)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` on, those outside undisturbed; None leaves them as they are."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _unexpected(error: Exception) -> ApiError:
    """What a client is told about an error that isn't its own; the log has the rest."""
    if isinstance(error, RuntimeError) and "out of memory" in str(error):
        _logger.error("out of memory; start with a smaller --max-tiles or --dtype bfloat16")
        return ApiError(503, "the server ran out of memory; send fewer or smaller images", code="out_of_memory")
    _logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says why", code="internal_error")
