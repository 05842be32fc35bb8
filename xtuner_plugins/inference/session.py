"""The session behind chat, page and evaluation.

It prompts and generates with the methods that an exported model has, and cuts images as training did: what answers here
is what was trained and what ships. A conversation belongs to its caller, who hands in all of its turns: `reply` streams
the answer to the last one, `answers` takes many questions that are unconnected.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torchvision.transforms import functional
from transformers import TextIteratorStreamer

from ..datasets.base import tiling_of
from ..datasets.images.media import load_image, to_rgb
from ..datasets.images.resize_rules import compare_resize_facts
from ..datasets.images.tiling import DynamicTiling
from ..datasets.plan.budget import first_limit
from ..hub.constants import IMAGE_PLACEHOLDER, IMAGENET_MEAN, IMAGENET_STD
from ..hub.modeling_internvl_chat import InternVLChatModel
from .questions import Lengths


class Frame(NamedTuple):
    """A frame of a video, which is always one tile."""

    image: Image.Image


ImageLike = str | Path | Image.Image | Frame
Item = tuple[str, Sequence[ImageLike]]  # a question and its images

MAX_NEW_TOKENS = 512
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """A question of a conversation.

    Attributes:
        question: `<image>` marks the position of each image; without any, they go before it, one per line.
        images: Paths, PIL images or frames.
        answer: None while it is open.
    """

    question: str
    images: Sequence[ImageLike] = ()
    answer: str | None = None


class ChatSession:
    """A model that answers questions about images.

    Args:
        model: The hub code's model, on the device and in the dtype to compute in.
        tokenizer: Its tokenizer.
        lock: The preprocessing of its training; a warning tells of a Pillow that resizes otherwise.
        **limits: `min_tiles`, `max_tiles` (without thumbnail) and `use_thumbnail`; None takes the model's setting.

    Raises:
        SettingError: Impossible limits of tiles.
    """

    def __init__(self, model: InternVLChatModel, tokenizer, *, lock: Mapping[str, Any] | None = None, **limits: Any):
        self.model, self.tokenizer, self._limits = model.eval(), tokenizer, limits
        self.tiling = self._tiling()
        self._lock = threading.Lock()
        if warning := compare_resize_facts(dict(lock or {})):
            _logger.warning(warning)
        if (lock or {}).get("tile_sharing", "equal") != "equal":  # of an earlier version
            _logger.warning("in its training each image of a question had a tile limit of its own; here they share one")

    @property
    def lengths(self) -> Lengths:
        """What the length of its prompts is counted by."""
        return Lengths(self.tiling, self.model.num_image_token)

    def tiles(self, images: Sequence[ImageLike], max_tiles: int | None = None) -> list[torch.Tensor]:
        """Tiles uint8 `[T, 3, S, S]` of each image and frame of one question.

        Args:
            images: All of the question's; those that are no frames share the tile limit as in training.
            max_tiles: The limit of an image that is alone; None takes the session's.

        Raises:
            ValueError: A file can't be read, or the limit is impossible.
        """
        tiling, num_images = self._tiling(max_tiles), sum(not isinstance(image, Frame) for image in images)
        return [self._cut(image, tiling, num_images) for image in images]

    def prompt_ids(self, turns: Sequence[Turn], max_tiles: int | None = None) -> list[int]:
        """The token ids of the prompt that `reply` gives to the model; errors as there."""
        return self._prompt(turns, max_tiles)[0]

    def reply(
        self,
        turns: Sequence[Turn],
        *,
        system: str | None = None,
        max_tiles: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        **generation: Any,
    ) -> Iterator[str]:
        """Answers the last turn, word by word; the pieces joined and stripped are the answer.

        Closing the iterator, or an exception in the loop over it, ends the generation. A session that others ask at the
        same time answers one after the other.

        Args:
            turns: The conversation; all but the last have answers.
            system: System prompt of the conversation; empty or None takes the model's.
            max_tiles: Most tiles of a question's images; None takes the session's.
            max_new_tokens: Length limit of the answer.
            **generation: Options of `generate`, such as `do_sample` and `temperature`; greedy by default.

        Raises:
            ValueError: A file can't be read, a question hasn't one placeholder per image, or the prompt is longer than
                the model's positions.
        """
        pieces = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = threading.Event()
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, **generation, "streamer": pieces}
        options["stopping_criteria"] = [lambda ids, *_, **__: torch.full(ids.shape[:1], stop.is_set()).to(ids.device)]

        def work() -> None:
            try:
                with self._lock, torch.inference_mode():
                    if not stop.is_set():
                        self._chat(turns, system, max_tiles, options)
                pieces.text_queue.put(pieces.stop_signal)
            except BaseException as error:  # raised in the thread that reads the pieces
                pieces.text_queue.put(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            for piece in pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            stop.set()
            worker.join()

    def answers(
        self,
        items: Sequence[Item],
        *,
        batch_size: int = 1,
        max_tiles: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        **generation: Any,
    ) -> list[str]:
        """Answers unconnected questions in batches, and returns the answers in their order.

        Args:
            items: `(question, images)` pairs; `images` may be empty.
            batch_size: Questions per batch.
            max_tiles: Most tiles per image; None takes the session's.
            max_new_tokens: Length limit of each answer.
            **generation: Options of `generate`; greedy by default.

        Raises:
            ValueError: An image can't be read, there isn't one placeholder per image, a prompt is longer than the
                model's positions, or a number is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}, but must be at least 1")
        tiling, options = self._tiling(max_tiles), {"max_new_tokens": max_new_tokens, "do_sample": False, **generation}
        batches = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
        return [answer for batch in batches for answer in self._answer_batch(batch, tiling, options)]

    def _tiling(self, max_tiles: int | None = None) -> DynamicTiling:
        """The rule for an image that is alone."""
        given = {} if max_tiles is None else {"max_tiles": max_tiles}
        return tiling_of(self.model.config, self._limits | given)

    def _cut(self, image: ImageLike, tiling: DynamicTiling, num_images: int) -> torch.Tensor:
        """Tiles of one of a question's `num_images` images, or of a frame beside them."""
        if isinstance(image, Frame):
            return tiling.limited(1)(to_rgb(image.image))
        limit = first_limit(tiling.max_tiles, num_images)
        return tiling.limited(limit)(to_rgb(image) if isinstance(image, Image.Image) else load_image(image))

    def _ids(self, question: str, counts: Sequence[int], past: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The token ids of the prompt of a question, whose images have so many tiles."""
        ids = self.model.build_prompt_ids(self.tokenizer, question, list(counts), list(past))
        positions = getattr(self.model.config.llm_config, "max_position_embeddings", None)
        if positions is not None and len(ids) >= positions:
            told = f"the model knows {positions:,} positions; lower the tile limit, or begin a new conversation"
            raise ValueError(f"the prompt has {len(ids):,} tokens, but {told}")
        return ids

    def _prompt(self, turns: Sequence[Turn], max_tiles: int | None) -> tuple[list[int], dict[str, Any]]:
        """Token ids of the prompt of a conversation, and what the model's own `chat` takes for it."""
        tiles = [image for turn in turns for image in self.tiles(turn.images, max_tiles)]
        *past, (question, _) = [(with_placeholders(turn.question, len(turn.images)), turn.answer) for turn in turns]
        counts = [len(image) for image in tiles]
        given = {"pixel_values": self._pixels(tiles) if tiles else None, "question": question}
        return self._ids(question, counts, past), {**given, "history": past, "num_patches_list": counts}

    def _chat(self, turns: Sequence[Turn], system: str | None, max_tiles: int | None, options: dict) -> None:
        """Lets the model's own `chat` answer the last turn, with this system prompt."""
        own = self.model.system_message
        self.model.system_message = system or own
        try:
            _, given = self._prompt(turns, max_tiles)
            self.model.chat(self.tokenizer, generation_config=options, **given)
        finally:
            self.model.system_message = own

    @torch.no_grad()
    def _answer_batch(self, items: Sequence[Item], tiling: DynamicTiling, options: dict) -> list[str]:
        """The answers of one batch. An image that several of its questions are about is cut and encoded once."""
        # The same file, or image in memory; in a question with others it has a tile limit of its own.
        rows = [[(_identity(image), len(images)) for image in images] for _, images in items]
        distinct = dict(zip(sum(rows, []), (image for _, images in items for image in images), strict=True))
        tiles = {key: self._cut(image, tiling, key[1]) for key, image in distinct.items()}
        questions = [with_placeholders(text, len(images)) for text, images in items]
        counts = [[len(tiles[key]) for key in row] for row in rows]
        for pair in zip(questions, counts, strict=True):
            self._ids(*pair)
        pixels = features = None
        if tiles and self.model.flash_mode:  # each question chooses the tiles to compress
            pixels = self._pixels(tiles[key] for row in rows for key in row)
        elif tiles:
            found = self.model.extract_feature(self._pixels(tiles.values())).split(list(map(len, tiles.values())))
            by_key = dict(zip(tiles, found, strict=True))
            features = torch.cat([by_key[key] for row in rows for key in row])
        given = {"num_patches_list": counts, "visual_features": features}
        return self.model.batch_chat(self.tokenizer, pixels, questions, dict(options), **given)

    def _pixels(self, tiles: Iterable[torch.Tensor]) -> torch.Tensor:
        """Normalized `[T, 3, S, S]` on the model's device."""
        return normalize(torch.cat(list(tiles)).to(self.model.device)).to(self.model.dtype)


def _identity(image: ImageLike) -> str | int:
    return str(image) if isinstance(image, (str, Path)) else id(image)


def normalize(tiles: torch.Tensor) -> torch.Tensor:
    """Normalizes uint8 tiles `[T, 3, S, S]` to float32 with ImageNet's mean and std, bit-equal to training."""
    return functional.normalize(tiles.float() / 255.0, IMAGENET_MEAN, IMAGENET_STD)


def with_placeholders(question: str, num_images: int) -> str:
    """The question with one `<image>` per image; if it has none, they are put before it, one per line.

    Raises:
        ValueError: It has some, but not one per image.
    """
    found = question.count(IMAGE_PLACEHOLDER)
    if found in (0, num_images):
        return question if found else (IMAGE_PLACEHOLDER + "\n") * num_images + question
    told = f"the question has {found} {IMAGE_PLACEHOLDER} for {num_images} images"
    raise ValueError(f"{told}; write one for each, or none")


def resolve_device(name: str) -> torch.device:
    """A torch device by name; `'auto'` is CUDA if available, else the CPU.

    Raises:
        ValueError: The device can't be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} can't be used ({reason}); legal are 'auto', 'cpu', 'cuda'") from None
