"""What a client sends to the chat completions endpoint, checked, and the conversation that it means.

One request::

    {"model": "mine", "max_tokens": 64, "stream": true,
     "messages": [{"role": "system", "content": "Answer in one word."},
                  {"role": "user", "content": [
                      {"type": "text", "text": "What is it?"},
                      {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}]}]}
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..datasets.images.media import decode_image
from ..hub.constants import IMAGE_PLACEHOLDER
from ..inference.session import with_placeholders

# Parameters of the API that this server has no use for, with the values that ask for nothing.
NEUTRAL = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "store": (False,),
}
LABELS = ("user", "metadata")  # say who asks; no answer depends on them


class ApiError(Exception):
    """A request that can't be answered, in the form in which OpenAI's clients expect it.

    Args:
        status: HTTP status.
        message: What is wrong, where, and the remedy.
        code: A word for programs.
        param: The field of the request.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Attributes:
        body_bytes: Size of a request.
        images: Images of a request, earlier turns included.
        pixels: Pixels of an image.
        new_tokens: Length of an answer.
        queue: Requests that wait or are being answered.
    """

    body_bytes: int = 32 << 20
    images: int = 16
    pixels: int = 50_000_000
    new_tokens: int = 2048
    queue: int = 64


@dataclass(frozen=True)
class Dialogue:
    """A request as the session takes it; images are decoded.

    Attributes:
        system: System message; None takes the model's own.
        turns: `(question, images, answer)` so far.
        question, images: What is to be answered.
    """

    system: str | None
    turns: list[tuple[str, list[Image.Image], str]]
    question: str
    images: list[Image.Image] = field(default_factory=list)


class _Strict(BaseModel):
    """Unknown fields are refused; null means absent, as clients write what they leave out."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class ImageUrl(_Strict):
    """An image; `detail` `low` is refused, as the number of tiles is the model's."""

    url: str
    detail: Literal["auto", "high"] = "auto"


class TextPart(_Strict):
    """A text among the parts of a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """An image among the parts of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


PART_TYPES = ("text", "image_url")
Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """A turn, or the system message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] = ""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_lists(cls, value: Any) -> Any:
        """An answer of this API that a client sends back has `"tool_calls": []` and the like."""
        return {key: item for key, item in value.items() if item != []} if isinstance(value, dict) else value

    def text_and_urls(self) -> tuple[str, list[str]]:
        """The message's text and the URLs of its images.

        An `<image>` in the text is the place of an image. Without any, images that are mixed with several texts stay
        in their order, one part per line; otherwise they are left to the session, which puts them before the text.
        """
        if isinstance(self.content, str):
            return self.content, []
        texts = [part.text for part in self.content if isinstance(part, TextPart)]
        urls = [part.image_url.url for part in self.content if isinstance(part, ImagePart)]
        if urls and len(texts) > 1 and not any(IMAGE_PLACEHOLDER in text for text in texts):
            texts = [part.text if isinstance(part, TextPart) else IMAGE_PLACEHOLDER for part in self.content]
        return "\n".join(texts), urls


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(_Strict):
    """A request; parameters that nothing here would honor are refused unless they ask for nothing."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    stop: str | Annotated[list[str], Field(max_length=4)] = []
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {key: item for key, item in value.items() if key not in LABELS}
        for name in kept.keys() & NEUTRAL.keys():
            if kept[name] is not None and kept[name] not in NEUTRAL[name]:
                raise ValueError(f"{name} = {kept[name]!r} is not supported; leave it out")
            del kept[name]
        return kept

    @model_validator(mode="after")
    def _check_stop(self) -> ChatRequest:
        self.stop = [self.stop] if isinstance(self.stop, str) else self.stop
        if "" in self.stop:
            raise ValueError("stop holds an empty text; leave it out")
        return self

    @classmethod
    def parse(cls, body: bytes) -> ChatRequest:
        """A request from its JSON text.

        Raises:
            ApiError: It is no such request; the message names a field that is wrong.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            # A field of several types has an error for each of them; the deepest is that of the type that was meant.
            found = max(error.errors(include_url=False, include_input=False), key=lambda item: len(item["loc"]))
        param = _path(found["loc"])
        message = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":
            message = "this server has no such parameter; leave it out"
        raise ApiError(400, f"{param}: {message}" if param else message, param=param, code="invalid_request")

    def answer_length(self, limit: int) -> int | None:
        """Most tokens of the answer; None if the client leaves it open.

        Raises:
            ApiError: More than `limit`.
        """
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        length = getattr(self, name)
        if length is not None and length > limit:
            raise ApiError(400, f"{name} = {length}: this server writes at most {limit} tokens per answer", param=name)
        return length

    def dialogue(self, limits: Limits) -> Dialogue:
        """The conversation with decoded images.

        Raises:
            ApiError: Turns out of order, or images that can't be taken.
        """
        messages, system = list(enumerate(self.messages)), None
        if messages[0][1].role in ("system", "developer"):
            system, urls = messages.pop(0)[1].text_and_urls()
            _refuse_images(0, urls)
        turns: list = []
        num_images = 0
        for place, (index, message) in enumerate(messages):
            expected = ("user", "assistant")[place % 2]
            if message.role != expected:
                raise ApiError(
                    400,
                    f"messages[{index}]: role {message.role!r} where {expected!r} is expected; give at most one system "
                    "message, first, then user and assistant by turns",
                    param=f"messages[{index}].role",
                )
            text, urls = message.text_and_urls()
            if expected == "assistant":
                _refuse_images(index, urls)
                turns[-1] += (text,)
                continue
            num_images += len(urls)
            if num_images > limits.images:
                raise ApiError(400, f"messages: more than {limits.images} images; send fewer", param="messages")
            turns.append(self._question(index, text, urls, limits))
        if len(messages) % 2 == 0:
            raise ApiError(400, "messages: the last message must be the user's", param="messages")
        question, images = turns.pop()
        return Dialogue(system, turns, question, images)

    def _question(self, index: int, text: str, urls: list[str], limits: Limits) -> tuple[str, list[Image.Image]]:
        place = f"messages[{index}]"
        try:
            text = with_placeholders(text, len(urls))
            images = [
                decode_image(_image_bytes(url), f"{place}, image {number}", limits.pixels)
                for number, url in enumerate(urls, 1)
            ]
        except ValueError as error:
            said = str(error) if str(error).startswith(place) else f"{place}: {error}"
            raise ApiError(400, said, param=f"{place}.content", code="invalid_image") from None
        return text, images


def _image_bytes(url: str) -> bytes:
    """The bytes in a data URL.

    Raises:
        ValueError: Another kind of URL, or bytes that aren't base64.
    """
    kind, comma, data = url.partition(",")
    if not url[:5].lower() == "data:":
        raise ValueError(
            f"image_url {url[:60]!r} is no data URL; this server opens no addresses and no files, since a client could "
            "then reach what only this machine may reach; send data:image/png;base64,..."
        )
    if not comma or not kind.lower().endswith(";base64"):
        raise ValueError("image_url is a data URL without base64; send data:image/png;base64,...")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"image_url holds no base64 ({error}); encode the image's file") from None


def _refuse_images(index: int, urls: list[str]) -> None:
    if urls:
        raise ApiError(400, f"messages[{index}]: only messages of the user may hold images", param=f"messages[{index}]")


def _path(loc: tuple[int | str, ...]) -> str | None:
    """`messages[0].content[1]` from pydantic's location, without the names of its union's members."""
    path = ""
    for before, step in zip((None, *loc), loc, strict=False):
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.isidentifier() and step != "str" and not (isinstance(before, int) and step in PART_TYPES):
            path += f".{step}"
    return path.lstrip(".") or None
