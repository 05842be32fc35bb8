"""Runs GGUF files with llama.cpp, through the package ``xllamacpp``, on the CPU."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoints.errors import CheckpointError
from ..hub.constants import IMAGE_PLACEHOLDER
from .messages import image_part
from .session import with_placeholders


@dataclass(frozen=True)
class Completion:
    """An answer of llama.cpp.

    Attributes:
        text: the answer.
        num_prompt_tokens: text and image tokens.
        first: log probability by token id, of the likeliest first tokens.
    """

    text: str
    num_prompt_tokens: int
    first: dict[int, float]


def import_package() -> Any:
    """``xllamacpp``.

    Raises:
        CheckpointError: It isn't installed.
    """
    try:
        import xllamacpp
    except ModuleNotFoundError:
        raise CheckpointError("llama.cpp isn't installed here: pip install 'xtuner-plugins[llama-cpp]'") from None
    return xllamacpp


class LlamaCpp:
    """A model of two GGUF files.

    Args:
        model: the language model's file.
        mmproj: the file of encoder and projector.
        context: most tokens of a prompt and its answer.
        threads: of the CPU.

    Raises:
        CheckpointError: ``xllamacpp`` isn't installed, or it can't open the files.
    """

    def __init__(self, model: str | Path, mmproj: str | Path, *, context: int = 8192, threads: int = 1):
        xllamacpp = import_package()
        for path in (model, mmproj):
            if not Path(path).is_file():
                raise CheckpointError(f"{path} does not exist")
        params = xllamacpp.CommonParams()
        params.model.path, params.mmproj.path = str(model), str(mmproj)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        # It opens a port, which nothing here uses: to this machine alone, behind a key that nobody knows.
        params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [secrets.token_hex(16)]
        params.warmup, params.verbosity = False, 0
        # As exact as it gets, not as fast: this is for comparisons. The default holds keys and values in float16.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise CheckpointError(f"llama.cpp can't open {model}: {error}") from None

    def ask(
        self, question: str, images: Sequence[Image.Image] = (), *, max_new_tokens: int = 16, top: int = 20
    ) -> Completion:
        """The greedy answer to one question.

        Args:
            question: ``<image>`` marks the place of each image; without any, they go before it, one per line as in
                training.
            images: Of the question.
            max_new_tokens: Length limit of the answer.
            top: Tokens whose log probabilities are told.

        Raises:
            ValueError: The question has another number of placeholders than images.
            CheckpointError: llama.cpp refuses the request.
        """
        # llama.cpp itself puts a line break between two texts, but none between image and text.
        before, *texts = with_placeholders(question, len(images)).split(IMAGE_PLACEHOLDER)
        parts: list[dict[str, Any]] = [{"type": "text", "text": before}] if before else []
        for image, text in zip(images, texts, strict=True):
            parts += [image_part(image), {"type": "text", "text": text}]
        request = {
            "messages": [{"role": "user", "content": parts if images else question}],
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": top,
            "cache_prompt": False,
        }
        reply = self._server.handle_chat_completions(request)
        reply = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
        if "choices" not in reply:
            raise CheckpointError(f"llama.cpp refuses the question: {reply.get('error', reply)}")
        choice = reply["choices"][0]
        tokens = (choice.get("logprobs") or {}).get("content") or []
        first = {each["id"]: each["logprob"] for each in tokens[0]["top_logprobs"]} if tokens else {}
        return Completion(choice["message"]["content"], reply["usage"]["prompt_tokens"], first)
