"""The models behind the web page: one that runs here, or one behind an OpenAI-style server.

Both answer a whole conversation at a time and keep nothing between questions, so that visitors can't be mixed up.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx
import torch
from transformers import StoppingCriteria

from ..datasets.base import tiling_of
from ..hub.constants import IMAGE_PLACEHOLDER
from ..inference.messages import image_part
from ..inference.session import CallbackStreamer, ChatSession, normalize
from .demo_media import Medium, cut_media, question_text

API_KEY = "OPENAI_API_KEY"  # the variable that OpenAI's own client reads


class ModelError(ValueError):
    """A model can't answer; the message says why, for the visitor."""


@dataclass(frozen=True)
class Turn:
    """A question of a conversation.

    Attributes:
        text: As typed.
        media: Files sent with it.
        answer: None while it is open.
    """

    text: str
    media: Sequence[Medium] = ()
    answer: str | None = None


@dataclass(frozen=True)
class Settings:
    """How to answer.

    Attributes:
        system: System prompt; empty takes the model's own.
        temperature: Above 0 samples; at 0 the likeliest token is taken.
        max_tiles: Most tiles of an image, thumbnail not counted; None takes the model's own.
        max_new_tokens: Longest answer.
    """

    system: str = ""
    temperature: float = 0.0
    max_tiles: int | None = None
    max_new_tokens: int = 512


class DemoModel(Protocol):
    """What the page needs of a model."""

    name: str
    max_tiles: int | None  # the default of the page; None where a server decides
    num_parallel: int  # questions at a time

    def tiles(self, media: Sequence[Medium], max_tiles: int | None) -> list[torch.Tensor]:
        """Tiles uint8 `[T, 3, S, S]` of each image; none where they can't be known."""

    def answer(self, turns: Sequence[Turn], settings: Settings, stop: threading.Event, emit: Callable) -> None:
        """Answers the last turn, piece by piece; ends early once `stop` is set."""


class LocalModel:
    """A model in this process. It answers one question at a time; the page's queue holds the others.

    Args:
        session: Opened model.
        name: What the page calls it.
    """

    num_parallel = 1

    def __init__(self, session: ChatSession, name: str):
        self.name = name
        self.max_tiles = session.tiling.max_tiles
        self.tokens_per_tile = session.model.num_image_token
        self._session = session
        self._lock = threading.Lock()

    def tiles(self, media: Sequence[Medium], max_tiles: int | None) -> list[torch.Tensor]:
        """Tiles uint8 `[T, 3, S, S]` of each image and frame."""
        tiling = tiling_of(self._session.model.config, {"max_tiles": max_tiles})
        return cut_media(media, tiling, self._session.tile_sharing)

    def answer(
        self, turns: Sequence[Turn], settings: Settings, stop: threading.Event, emit: Callable[[str], None]
    ) -> None:
        """Answers the last turn.

        Raises:
            ModelError: Placeholders don't fit the images, or memory is exhausted.
        """
        tiles = [tiles for turn in turns for tiles in self.tiles(turn.media, settings.max_tiles)]
        try:
            questions = [question_text(turn.text, turn.media) for turn in turns]
            history = [(question, turn.answer) for question, turn in zip(questions, turns[:-1], strict=False)]
            with self._lock:
                if not stop.is_set():
                    self._chat(tiles, questions[-1], history, settings, stop, emit)
        except ValueError as error:
            raise ModelError(str(error)) from None
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise ModelError("out of memory; lower the tile limit, or begin a new conversation") from None

    def _chat(self, tiles, question, history, settings, stop, emit) -> None:
        model, tokenizer = self._session.model, self._session.tokenizer
        options = {
            "max_new_tokens": settings.max_new_tokens,
            "do_sample": settings.temperature > 0,
            "streamer": CallbackStreamer(tokenizer, emit),
            "stopping_criteria": [_Stop(stop)],
        }
        if settings.temperature > 0:
            options["temperature"] = settings.temperature
        pixels = None
        if tiles:
            pixels = normalize(torch.cat(tiles).to(model.device)).to(model.dtype)
        own = model.system_message
        try:
            model.system_message = settings.system or own
            counts = [len(image) for image in tiles]
            with torch.inference_mode():
                model.chat(tokenizer, pixels, question, options, history=history, num_patches_list=counts)
        finally:
            model.system_message = own


class _Stop(StoppingCriteria):
    """Ends generation once an event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)


class ServerModel:
    """A model behind an OpenAI-style server, asked through `/chat/completions`. The server cuts the images.

    Args:
        url: Up to the version, such as `http://127.0.0.1:8000/v1`.
        name: The model's name at the server.
    """

    num_parallel = 8
    max_tiles = None

    def __init__(self, url: str, name: str):
        self.name = name
        self.url = url.rstrip("/") + "/chat/completions"

    def tiles(self, media: Sequence[Medium], max_tiles: int | None) -> list[torch.Tensor]:
        """None: the server doesn't tell."""
        return []

    def answer(
        self, turns: Sequence[Turn], settings: Settings, stop: threading.Event, emit: Callable[[str], None]
    ) -> None:
        """Answers the last turn.

        Raises:
            ModelError: The server can't be reached, refuses, or sends what isn't an answer.
        """
        body = {
            "model": self.name,
            "messages": messages_of(turns, settings.system),
            "temperature": settings.temperature,
            "max_tokens": settings.max_new_tokens,
            "stream": True,
        }
        key = os.environ.get(API_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(10, read=600)
        try:
            with httpx.stream("POST", self.url, json=body, headers=headers, timeout=timeout) as response:
                if response.status_code != 200:
                    text = " ".join(response.read().decode("utf-8", "replace").split())[:300]
                    raise ModelError(f"the server answers {response.status_code}: {text}")
                for line in response.iter_lines():
                    if stop.is_set() or line.strip() == "data: [DONE]":
                        return
                    if line.startswith("data:"):
                        emit(piece_of(line))
        except httpx.InvalidURL as error:
            raise ModelError(f"{self.url} is no address ({error})") from None
        except httpx.HTTPError as error:
            raise ModelError(f"the server at {self.url} can't be reached ({error or type(error).__name__})") from None


def messages_of(turns: Sequence[Turn], system: str) -> list[dict]:
    """A conversation as OpenAI's API takes it, with images as data URLs at their placeholders.

    Raises:
        ModelError: Placeholders don't fit the images.
    """
    messages: list[dict] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        try:
            texts = question_text(turn.text, turn.media).split(IMAGE_PLACEHOLDER)
        except ValueError as error:
            raise ModelError(str(error)) from None
        content = [{"type": "text", "text": texts[0]}]
        images = [image for medium in turn.media for image in medium.images]
        for image, text in zip(images, texts[1:], strict=True):
            content.append(image_part(image))
            # Servers put a line break between an image and a text, and so between images.
            content.append({"type": "text", "text": text.removeprefix("\n")})
        messages.append({"role": "user", "content": [part for part in content if part.get("text") != ""]})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


def piece_of(line: str) -> str:
    """The text in one event of a streamed answer; may be empty.

    Raises:
        ModelError: The event is an error or no json of that form.
    """
    try:
        event = json.loads(line.removeprefix("data:"))
        if "error" in event:
            raise ModelError(f"the server reports: {str(event['error'])[:300]}")
        choices = event["choices"]
        return (choices[0]["delta"].get("content") or "") if choices else ""
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
        raise ModelError(f"the server sent no answer but {line[:100]!r}") from None


def stream_answers(
    models: Sequence[DemoModel], conversations: Sequence[Sequence[Turn]], settings: Settings, stop: threading.Event
) -> Iterator[list[str]]:
    """Yields the answers so far, one per model: once when all models have begun, then whenever one of them grows.

    The models work side by side. They stop when the iterator is closed, so a visitor who leaves costs no more time.

    Raises:
        ModelError: From a model; the others are stopped.
    """
    events: queue.Queue = queue.Queue()

    def work(index: int) -> None:
        failure = None
        try:
            models[index].answer(conversations[index], settings, stop, lambda piece: events.put((index, piece)))
        except Exception as error:  # handed to the thread that shows it
            failure = error
        events.put((index, failure))

    for index in range(len(models)):
        threading.Thread(target=work, args=(index,), daemon=True).start()
    answers, running = [""] * len(models), len(models)
    try:
        yield list(answers)
        while running:
            index, piece = events.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                running -= 1
                continue
            answers[index] = (answers[index] + piece).lstrip()
            if events.empty():  # pieces that came meanwhile go to the page together
                yield list(answers)
    finally:
        stop.set()
    yield [answer.strip() for answer in answers]
