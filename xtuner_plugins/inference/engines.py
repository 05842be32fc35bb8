"""Programs that run an export besides ours, and what each tells about a question.

==================  ==================================================  =========================================
engine              runs                                                tells
==================  ==================================================  =========================================
``transformers``    transformers' own InternVL on the hf form           pixels, ids, log probabilities, answer
``llama.cpp``       the GGUF form, through ``xllamacpp`` on the CPU     number of prompt tokens, log probabilities
                                                                        of the likeliest, answer
a server            whatever an OpenAI-style server runs                the same, as far as it takes ``logprobs``
==================  ==================================================  =========================================
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from PIL import Image

from ..hub.constants import IMAGE_PLACEHOLDER
from .llama_cpp import LlamaCpp
from .messages import user_content
from .session import with_placeholders

API_KEY = "OPENAI_API_KEY"  # the variable that OpenAI's own client reads
READ_TIMEOUT_S = 600


class EngineError(ValueError):
    """An engine can't be used, or refuses a question."""


@dataclass(frozen=True)
class Reading:
    """What an engine tells about one question; None where it doesn't tell.

    Attributes:
        answer: The greedy one.
        num_tokens: Of the prompt.
        first: Log probability of the likeliest first tokens, by id, or by text where the engine tells no ids.
        ids: Of the prompt.
        pixels: What its network saw: normalized `[T, 3, S, S]`, all images of the question in order.
    """

    answer: str
    num_tokens: int | None = None
    first: dict[int, float] | dict[str, float] | None = None
    ids: list[int] | None = None
    pixels: torch.Tensor | None = None


class Engine(Protocol):
    """A program that answers questions."""

    name: str

    def read(self, question: str, images: Sequence[Image.Image], max_new_tokens: int, top: int) -> Reading:
        """Answers a question greedily.

        Args:
            question: May hold `<image>` for each image.
            images: RGB.
            max_new_tokens: Length limit of the answer.
            top: How many of the likeliest first tokens to tell.

        Raises:
            ValueError: The engine refuses the question.
        """


class TransformersEngine:
    """transformers' own ``InternVLForConditionalGeneration`` with its processor.

    Args:
        directory: In the hf format.
        device: To compute on.
        dtype: To compute in.
        num_rows: Of the model's head. The hf form has more: tokens of its processor, which no probability is given to.

    Raises:
        EngineError: It doesn't open.
    """

    name = "transformers"

    def __init__(self, directory: str | Path, device: torch.device, dtype: torch.dtype, num_rows: int):
        from transformers import AutoProcessor, InternVLForConditionalGeneration

        try:
            self._processor = AutoProcessor.from_pretrained(directory)
            model = InternVLForConditionalGeneration.from_pretrained(directory, dtype=dtype)
        except (OSError, ValueError, ImportError) as error:
            raise EngineError(f"transformers can't open {directory}: {_first_line(error)}") from None
        self._model, self._num_rows = model.to(device).eval(), num_rows

    @torch.no_grad()
    def read(self, question: str, images: Sequence[Image.Image], max_new_tokens: int, top: int) -> Reading:
        """See `Engine`."""
        before, *texts = with_placeholders(question, len(images)).split(IMAGE_PLACEHOLDER)
        content: list[dict[str, Any]] = [{"type": "text", "text": before}] if before else []
        for image, text in zip(images, texts, strict=True):
            # The chat template of the hf form puts a line break after each image.
            content += [{"type": "image", "image": image}, {"type": "text", "text": text.removeprefix("\n")}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._model.device, dtype=self._model.dtype)
        made = self._model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = inputs["input_ids"][0].tolist()
        first = made.logits[0][0, : self._num_rows].float().log_softmax(-1).topk(top)
        return Reading(
            answer=self._processor.decode(made.sequences[0, len(ids) :], skip_special_tokens=True).strip(),
            num_tokens=len(ids),
            first=dict(zip(first.indices.tolist(), first.values.tolist(), strict=True)),
            ids=ids,
            pixels=inputs["pixel_values"].float().cpu() if images else None,
        )


class LlamaCppEngine:
    """llama.cpp on the CPU, as exact as it gets.

    Args:
        model: The language model's GGUF file.
        mmproj: That of encoder and projector.
        threads: Of the CPU.

    Raises:
        CheckpointError: xllamacpp isn't installed, or it can't open the files.
    """

    name = "llama.cpp"

    def __init__(self, model: str | Path, mmproj: str | Path, threads: int):
        self._model = LlamaCpp(model, mmproj, threads=threads)

    def read(self, question: str, images: Sequence[Image.Image], max_new_tokens: int, top: int) -> Reading:
        """See `Engine`."""
        done = self._model.ask(question, images, max_new_tokens=max_new_tokens, top=top)
        return Reading(done.text.strip(), done.num_prompt_tokens, done.first or None)


class ServerEngine:
    """A model behind an OpenAI-style server. The key, if it wants one, is in ``OPENAI_API_KEY``.

    Args:
        url: Up to the version, such as `http://127.0.0.1:8000/v1`.
        model: Its name at the server.

    Raises:
        EngineError: Nothing answers there, or it has no such model.
    """

    def __init__(self, url: str, model: str):
        self.name = f"{model} at {url}"
        self._url, self._model, self._tells_first = url.rstrip("/"), model, True
        key = os.environ.get(API_KEY)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        listed = self._send("GET", "/models", None)
        names = [each.get("id") for each in listed.get("data", []) if isinstance(each, dict)]
        if model not in names:
            raise EngineError(f"the server at {url} has no model {model!r}; it has {', '.join(map(str, names))}")

    def read(self, question: str, images: Sequence[Image.Image], max_new_tokens: int, top: int) -> Reading:
        """See `Engine`. A server that refuses ``logprobs`` is asked again without."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": user_content(question, images)}],
            "max_tokens": max_new_tokens,
            "temperature": 0,
        }
        if self._tells_first:
            try:
                return _reading(
                    self._send("POST", "/chat/completions", {**body, "logprobs": True, "top_logprobs": top})
                )
            except EngineError as error:
                if "logprobs" not in str(error):
                    raise
                self._tells_first = False
        return _reading(self._send("POST", "/chat/completions", body))

    def _send(self, method: str, path: str, body: dict | None) -> dict:
        timeout = httpx.Timeout(10, read=READ_TIMEOUT_S)
        try:
            reply = httpx.request(method, self._url + path, json=body, headers=self._headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise EngineError(f"{self._url} is no address ({error})") from None
        except httpx.HTTPError as error:
            reason = error or type(error).__name__
            raise EngineError(f"the server at {self._url} can't be reached ({reason})") from None
        if reply.status_code != 200:
            text = " ".join(reply.text.split())[:300]
            raise EngineError(f"the server answers {reply.status_code}: {text}")
        try:
            found = reply.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise EngineError(f"the server at {self._url} sends no JSON object for {path}")
        return found


def _reading(reply: dict) -> Reading:
    """What a chat completion tells.

    Raises:
        EngineError: It is none.
    """
    try:
        choice = reply["choices"][0]
        told = (choice.get("logprobs") or {}).get("content") or []
        top = told[0]["top_logprobs"] if told else []
        # llama.cpp's server tells ids, others texts alone.
        key = "id" if top and all("id" in each for each in top) else "token"
        first = {each[key]: float(each["logprob"]) for each in top}
        num_tokens = (reply.get("usage") or {}).get("prompt_tokens")
        return Reading((choice["message"]["content"] or "").strip(), num_tokens, first or None)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise EngineError(f"the server sends no chat completion but {str(reply)[:200]!r}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
