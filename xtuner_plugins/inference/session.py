"""The session behind chat, page and evaluation.

It prompts and generates with the methods that an exported model has, and cuts images as training did: what answers here
is what was trained and what ships. A conversation belongs to its caller, who hands in all of its turns: `reply` streams
the answer to the last one, `answers` takes many questions that are unconnected.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import StoppingCriteria, TextStreamer

from ..datasets.base import tiling_of
from ..datasets.images.media import load_image, to_rgb
from ..datasets.images.resize_rules import compare_resize_facts
from ..datasets.images.tiling import DynamicTiling
from ..datasets.plan.budget import first_limit
from ..dtypes import resolve_dtype
from ..hub import InternVLChatModel
from ..hub.constants import IMAGE_CONTEXT, IMAGE_PLACEHOLDER, IMAGENET_MEAN, IMAGENET_STD
from ..hub.prompts import token_id
from ..weights import preprocessing
from ..weights.loader import load_model, load_tokenizer
from ..weights.reading import read_json


class Frame(NamedTuple):
    """A frame of a video, which is always one tile."""

    image: Image.Image


ImageLike = str | Path | Image.Image | Frame

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
        min_tiles: Fewest tiles per image; None takes the model's setting.
        max_tiles: Most tiles per image without thumbnail; None takes the model's setting.
        use_thumbnail: Add a thumbnail if there is more than one tile; None takes the model's setting.
        tile_sharing: How the images of one question share the limit: `'equal'`, the default of the official training
            and ours, or `'each'` and `'need'` (each may have all of it).

    Raises:
        SettingError: Impossible limits of tiles.
    """

    def __init__(
        self,
        model: InternVLChatModel,
        tokenizer,
        *,
        min_tiles: int | None = None,
        max_tiles: int | None = None,
        use_thumbnail: bool | None = None,
        tile_sharing: str = "equal",
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._limits = {"min_tiles": min_tiles, "max_tiles": max_tiles, "use_thumbnail": use_thumbnail}
        self.tiling = tiling_of(model.config, self._limits)
        self.tile_sharing = tile_sharing
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, device: str = "auto", dtype: str = "auto", **limits: Any
    ) -> ChatSession:
        """Opens an official directory with this project's own code; nothing in the directory is executed.

        Args:
            directory: A base or an export.
            device: `'auto'` (CUDA if available), or a torch device.
            dtype: `'auto'` (bfloat16 on CUDA, float16 on GPUs without it, float32 on the CPU), or a name.
            **limits: `min_tiles`, `max_tiles` and `use_thumbnail` of the session.

        Raises:
            ValueError: No such directory, not a model, weights that don't fit, or an impossible device or dtype.
        """
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        model, _ = load_model(directory, dtype=dtype, device=device)
        trained, tokenizer = _read_preprocessing(Path(directory), model.config), load_tokenizer(directory)
        if trained:
            preprocessing.check_token_rules(trained, tokenizer, str(directory))
        limits.setdefault("tile_sharing", trained.get("tile_sharing", "equal"))
        return cls(model, tokenizer, **limits)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.device

    def tiling_with(self, max_tiles: int | None = None) -> DynamicTiling:
        """The rule for an image that is alone, with another tile limit if one is given.

        Raises:
            SettingError: Impossible limits of tiles.
        """
        if max_tiles is None:
            return self.tiling
        return tiling_of(self.model.config, {**self._limits, "max_tiles": max_tiles})

    def tiles(self, images: Sequence[ImageLike], max_tiles: int | None = None) -> list[torch.Tensor]:
        """Tiles uint8 `[T, 3, S, S]` of each image and frame of one question.

        Raises:
            ValueError: A file can't be read.
        """
        return self._load(images, self.tiling_with(max_tiles))

    def prompt_ids(self, turns: Sequence[Turn], max_tiles: int | None = None) -> list[int]:
        """The token ids of the prompt that `reply` gives to the model.

        Raises:
            ValueError: As `reply`.
        """
        return self._prompt(turns, max_tiles)[-1]

    @torch.no_grad()
    def first_log_probabilities(self, turns: Sequence[Turn]) -> torch.Tensor:
        """Log probabilities of each token `[V]` to be the first of the answer; float32, CPU.

        Raises:
            ValueError: As `reply`.
        """
        *_, tiles, ids = self._prompt(turns)
        inputs = {"input_ids": torch.tensor([ids], device=self.device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        pixels = self._pixels(tiles)
        self.model.img_context_token_id = token_id(self.tokenizer, IMAGE_CONTEXT)
        given = self.model.language_model(**inputs) if pixels is None else self.model(pixel_values=pixels, **inputs)
        return given.logits[0, -1].float().log_softmax(-1).cpu()

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
        pieces: queue.SimpleQueue = queue.SimpleQueue()
        stop = threading.Event()
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, **generation}
        options |= {"streamer": CallbackStreamer(self.tokenizer, pieces.put), "stopping_criteria": [_Stop(stop)]}

        def work() -> None:
            try:
                with self._lock, torch.inference_mode():
                    if not stop.is_set():
                        self._chat(turns, system, max_tiles, options)
                pieces.put(None)
            except BaseException as error:  # raised in the thread that reads the pieces
                pieces.put(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            stop.set()
            worker.join()

    def _chat(self, turns: Sequence[Turn], system: str | None, max_tiles: int | None, options: dict) -> None:
        """Lets the model's own `chat` answer the last turn, with this system prompt."""
        own = self.model.system_message
        self.model.system_message = system or own
        try:
            past, question, tiles, _ = self._prompt(turns, max_tiles)
            pixels, counts = self._pixels(tiles), [len(image) for image in tiles]
            self.model.chat(self.tokenizer, pixels, question, options, history=past, num_patches_list=counts)
        finally:
            self.model.system_message = own

    def _prompt(
        self, turns: Sequence[Turn], max_tiles: int | None = None
    ) -> tuple[list[tuple[str, str]], str, list[torch.Tensor], list[int]]:
        """Past pairs and the open question, with placeholders; tiles of each image; token ids of the prompt."""
        tiling = self.tiling_with(max_tiles)
        tiles = [image for turn in turns for image in self._load(turn.images, tiling)]
        *past, (question, _) = [(with_placeholders(turn.question, len(turn.images)), turn.answer) for turn in turns]
        return past, question, tiles, self.checked_ids(question, [len(image) for image in tiles], past)

    def checked_ids(self, question: str, num_tiles: Sequence[int], past: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The token ids of the prompt of a question.

        Args:
            question: With a placeholder per image.
            num_tiles: Of each image of the conversation.
            past: Earlier questions with their answers.

        Raises:
            ValueError: The prompt is longer than the model's positions.
        """
        ids = self.model.build_prompt_ids(self.tokenizer, question, list(num_tiles), list(past))
        positions = getattr(self.model.config.llm_config, "max_position_embeddings", None)
        if positions is not None and len(ids) >= positions:
            raise ValueError(
                f"the prompt has {len(ids):,} tokens, but the model knows {positions:,} positions; lower the tile "
                "limit, or begin a new conversation"
            )
        return ids

    def answers(
        self,
        items: Sequence[tuple[str, Sequence[ImageLike]]],
        *,
        batch_size: int = 1,
        max_tiles: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        on_batch: Callable[[int], None] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Answers unconnected questions in batches.

        Args:
            items: `(question, images)` pairs; `images` may be empty.
            batch_size: Questions per batch.
            max_tiles: Most tiles per image; None takes the session's.
            max_new_tokens: Length limit of each answer.
            on_batch: Called with the number of questions after each batch.
            **generation: Options of `generate`; greedy by default.

        Returns:
            The answers, in order.

        Raises:
            ValueError: An image can't be read, there isn't one placeholder per image, a prompt is longer than the
                model's positions, or a number is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}, but must be at least 1")
        tiling = self.tiling_with(max_tiles)
        answers: list[str] = []
        for start in range(0, len(items), batch_size):
            answers += self._answer_batch(
                items[start : start + batch_size], tiling, {"max_new_tokens": max_new_tokens, **generation}
            )
            if on_batch is not None:
                on_batch(len(answers) - start)
        return answers

    @torch.no_grad()
    def _answer_batch(
        self, items: Sequence[tuple[str, Sequence[ImageLike]]], tiling: DynamicTiling, generation: dict
    ) -> list[str]:
        """The answers of one batch. An image that several of its questions are about is cut and encoded once."""
        rows = [list(images) for _, images in items]
        # The same image in a question with others has a tile limit of its own.
        keys = [[(_identity(image), len(images)) for image in images] for images in rows]
        tiles: dict[tuple, torch.Tensor] = {}
        for own, images in zip(keys, rows, strict=True):
            new = [index for index, key in enumerate(own) if key not in tiles]
            tiles |= {
                own[i]: cut
                for i, cut in zip(new, self._load([images[i] for i in new], tiling, len(images)), strict=True)
            }
        questions = [with_placeholders(text, len(own)) for (text, _), own in zip(items, keys, strict=True)]
        for question, own in zip(questions, keys, strict=True):
            self.checked_ids(question, [len(tiles[key]) for key in own])
        flash = self.model.flash_mode  # then each question chooses the tiles to compress
        features = {} if flash else self._features(tiles)
        return self.model.batch_chat(
            self.tokenizer,
            self._pixels([tiles[key] for own in keys for key in own]) if flash else None,
            questions,
            {"do_sample": False, **generation},
            num_patches_list=[[len(tiles[key]) for key in own] for own in keys],
            visual_features=torch.cat([features[key] for own in keys for key in own]) if features else None,
        )

    def _features(self, tiles: dict[tuple, torch.Tensor]) -> dict[tuple, torch.Tensor]:
        """Image tokens `[T, N, H]` of each image."""
        if not tiles:
            return {}
        found = self.model.extract_feature(self._pixels(list(tiles.values())))
        return dict(zip(tiles, found.split([len(each) for each in tiles.values()]), strict=True))

    def _load(
        self, images: Sequence[ImageLike], tiling: DynamicTiling, num_images: int | None = None
    ) -> list[torch.Tensor]:
        """Tiles uint8 `[T, 3, S, S]` per image; the images of a question share the tile limit as in training.

        Args:
            images: All images of one question, or some of them.
            tiling: The rule for an image that is alone.
            num_images: Of the question, where `images` are some of them.
        """
        num_stills = num_images or sum(not isinstance(image, Frame) for image in images)
        still = tiling.limited(first_limit(tiling.max_tiles, num_stills, self.tile_sharing))
        return [(tiling.limited(1) if isinstance(image, Frame) else still)(_opened(image)) for image in images]

    def _pixels(self, tiles: list[torch.Tensor]) -> torch.Tensor | None:
        """Normalized `[T, 3, S, S]` on the model's device; None without images."""
        if not tiles:
            return None
        return normalize(torch.cat(tiles).to(self.device)).to(self.model.dtype)


def _opened(image: ImageLike) -> Image.Image:
    if isinstance(image, Frame):
        return to_rgb(image.image)
    return to_rgb(image) if isinstance(image, Image.Image) else load_image(image)


def _identity(image: ImageLike) -> str | int:
    """Equal for the same file, or the same image in memory."""
    return str(image) if isinstance(image, (str, Path)) else id(image)


def _read_preprocessing(directory: Path, config) -> dict:
    """The preprocessing that an export was trained with; empty for a directory without `preprocessing.json`.

    Warns if the directory's config or this machine's Pillow differs from it.

    Raises:
        PreprocessingError: `preprocessing.json` can't be read.
    """
    path = directory / preprocessing.FILE
    if not path.is_file():
        return {}
    trained = read_json(path)
    rule = preprocessing.exported(trained, str(path))
    edited = [
        f"{key}={getattr(config, key, None)} (trained: {value})"
        for key, value in rule.config_fields(vars(config)).items()
        if getattr(config, key, None) != value
    ]
    if edited:
        _logger.warning("%s differs from the model's training: %s", directory / "config.json", ", ".join(edited))
    if warning := compare_resize_facts(trained):
        _logger.warning(warning)
    return trained


class CallbackStreamer(TextStreamer):
    """Passes generated text to a function, word by word."""

    def __init__(self, tokenizer, callback: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.callback = callback

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with text that is final."""
        if text:
            self.callback(text)


class _Stop(StoppingCriteria):
    """Ends generation once an event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)


def normalize(tiles: torch.Tensor) -> torch.Tensor:
    """Normalizes uint8 tiles `[T, 3, S, S]` to float32 with ImageNet's mean and std, bit-equal to training."""
    mean, std = (torch.tensor(values, device=tiles.device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (tiles.float() / 255.0 - mean) / std


def with_placeholders(question: str, num_images: int) -> str:
    """The question with one `<image>` per image; if it has none, they are put before it, one per line.

    Raises:
        ValueError: It has some, but not one per image.
    """
    found = question.count(IMAGE_PLACEHOLDER)
    if found == num_images:
        return question
    if found:
        raise ValueError(
            f"the question has {found} {IMAGE_PLACEHOLDER} for {num_images} images; write one for each, or none"
        )
    return (IMAGE_PLACEHOLDER + "\n") * num_images + question


def resolve_device(name: str) -> torch.device:
    """A torch device by name; `'auto'` is CUDA if available, else the CPU.

    Raises:
        ValueError: The device can't be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} can't be used ({reason}); legal are 'auto', 'cpu', 'cuda'") from None
    return device
