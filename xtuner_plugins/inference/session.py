"""The session behind chat, demo and evaluation.

It prompts and generates with `chat` and `batch_chat` of the hub code, the methods that an exported model has, and cuts
images as training did: what answers here is what was trained and what ships.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TextStreamer

from .. import preprocessing
from ..checkpoints.io.reader import read_json
from ..checkpoints.io.writer import DTYPES
from ..checkpoints.loader import load_model, load_tokenizer
from ..datasets.base import tiling_of
from ..datasets.images.media import load_image, to_rgb
from ..datasets.images.resize_rules import compare_resize_facts
from ..datasets.images.tiling import DynamicTiling, Grid
from ..datasets.plan.budget import first_limit
from ..hub import InternVLChatModel
from ..hub.constants import IMAGE_CONTEXT, IMAGE_PLACEHOLDER, IMAGENET_MEAN, IMAGENET_STD
from ..hub.prompts import token_id
from .padding import quick_masks

ImageLike = str | Path | Image.Image

MAX_NEW_TOKENS = 512
_logger = logging.getLogger(__name__)


class ChatSession:
    """A model that holds a conversation about images.

    Args:
        model: The hub code's model, on the device and in the dtype to compute in.
        tokenizer: Its tokenizer.
        min_tiles: Fewest tiles per image; None takes the model's setting.
        max_tiles: Most tiles per image without thumbnail; None takes the model's setting.
        use_thumbnail: Add a thumbnail if there is more than one tile; None takes the model's setting.
        tile_sharing: How the images of one question share the limit: `'equal'`, the default of the official training
            and ours, or `'each'` and `'need'` (each may have all of it).

    Attributes:
        history: `(question, answer)` pairs so far.

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
        self.reset()

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

    def limit_tiles(self, max_tiles: int) -> None:
        """Cuts the images of later questions into at most so many tiles each; those shown before stay as they are.

        Raises:
            SettingError: Impossible limits of tiles.
        """
        limits = {**self._limits, "max_tiles": max_tiles}
        self.tiling = tiling_of(self.model.config, limits)
        self._limits = limits

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.device

    def reset(self) -> None:
        """Forgets the conversation and its images."""
        self.history: list[tuple[str, str]] = []
        self._tiles: list[torch.Tensor] = []

    def recall(self, turns: Sequence[tuple[str, Sequence[ImageLike], str]]) -> None:
        """Takes `(question, images, answer)` as the conversation so far, as if each had been asked here.

        Raises:
            ValueError: As `ask`; the conversation is then forgotten.
        """
        self.reset()
        history, tiles = [], []
        for question, images, answer in turns:
            own = self._load(images, self.tiling)
            history.append((with_placeholders(question, len(own)), answer))
            tiles += own
        self.history, self._tiles = history, tiles

    def shared_tiling(self, num_images: int) -> DynamicTiling:
        """The rule for each of the images of one question, which share the limit as in training."""
        return self._tiling_of(self.tiling, num_images)

    def grids(self, images: Sequence[Image.Image]) -> list[Grid]:
        """How the images of one question are cut."""
        tiling = self.shared_tiling(len(images))
        return [tiling.grid(*image.size) for image in images]

    def tiles(self, images: Sequence[ImageLike]) -> list[torch.Tensor]:
        """Tiles uint8 `[T, 3, S, S]` of each image of one question.

        Raises:
            ValueError: An image can't be read.
        """
        return self._load(images, self.tiling)

    @torch.no_grad()
    def first_log_probabilities(self, question: str, images: Sequence[Image.Image] = ()) -> torch.Tensor:
        """Log probabilities of each token `[V]` to be the first of the answer; float32, CPU.

        Raises:
            ValueError: As `ask`.
        """
        ids = torch.tensor([self.prompt_ids(question, images)], device=self.device)
        pixels = self._pixels([*self._tiles, *self.tiles(images)])
        self.model.img_context_token_id = token_id(self.tokenizer, IMAGE_CONTEXT)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        given = self.model.language_model(**inputs) if pixels is None else self.model(pixel_values=pixels, **inputs)
        return given.logits[0, -1].float().log_softmax(-1).cpu()

    def prompt_ids(self, question: str, images: Sequence[Image.Image] = ()) -> list[int]:
        """The token ids of the prompt that `ask` gives to the model for this question.

        Raises:
            ValueError: As `ask`.
        """
        counts = [len(tiles) for tiles in self._tiles] + [grid.num_tiles for grid in self.grids(images)]
        question = with_placeholders(question, len(images))
        return self.model.build_prompt_ids(self.tokenizer, question, counts, self.history)

    def ask(
        self,
        question: str,
        images: Sequence[ImageLike] | ImageLike = (),
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stream: Callable[[str], None] | None = None,
        **generation: Any,
    ) -> str:
        """Answers the next question of the conversation; a question that fails or is interrupted is forgotten.

        Args:
            question: `<image>` marks the position of each new image; without any, they go before it, one per line.
            images: New images, as paths or PIL images.
            max_new_tokens: Length limit of the answer.
            stream: Called with each piece of the answer.
            **generation: Options of `generate`, such as `do_sample` and `temperature`; greedy by default.

        Returns:
            The whole answer.

        Raises:
            ValueError: An image can't be read, or there isn't one placeholder per image.
        """
        tiles = [*self._tiles, *self._load(images, self.tiling)]
        question = with_placeholders(question, len(tiles) - len(self._tiles))
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, **generation}
        if stream:
            options["streamer"] = CallbackStreamer(self.tokenizer, stream)
        answer, history = self.model.chat(
            self.tokenizer,
            self._pixels(tiles),
            question,
            options,
            history=self.history,
            return_history=True,
            num_patches_list=[len(image) for image in tiles],
        )
        self.history, self._tiles = history, tiles
        return answer

    def answer(
        self,
        items: Sequence[tuple[str, Sequence[ImageLike]]],
        *,
        batch_size: int = 1,
        max_tiles: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        on_batch: Callable[[int], None] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Answers independent questions in batches; the conversation stays as it is.

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
            ValueError: An image can't be read, there isn't one placeholder per image, or a number is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}, but must be at least 1")
        tiling = self.tiling
        if max_tiles is not None:
            tiling = tiling_of(self.model.config, {**self._limits, "max_tiles": max_tiles})
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
        rows = [[images] if isinstance(images, (str, Path, Image.Image)) else list(images) for _, images in items]
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
        features = self._features(tiles)
        with quick_masks(self.model.language_model):
            return self.model.batch_chat(
                self.tokenizer,
                None,
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

    def _tiling_of(self, tiling: DynamicTiling, num_images: int) -> DynamicTiling:
        """The rule for each of the images of one question."""
        return tiling.limited(first_limit(tiling.max_tiles, num_images, self.tile_sharing))

    def _load(
        self, images: Sequence[ImageLike] | ImageLike, tiling: DynamicTiling, num_images: int | None = None
    ) -> list[torch.Tensor]:
        """Tiles uint8 `[T, 3, S, S]` per image; the images of a question share the tile limit as in training.

        Args:
            images: All images of one question, or some of them.
            tiling: The rule for an image that is alone.
            num_images: Of the question, where `images` are some of them.
        """
        if isinstance(images, (str, Path, Image.Image)):
            images = [images]
        tiling = self._tiling_of(tiling, num_images or len(images))
        return [tiling(to_rgb(image) if isinstance(image, Image.Image) else load_image(image)) for image in images]

    def _pixels(self, tiles: list[torch.Tensor]) -> torch.Tensor | None:
        """Normalized `[T, 3, S, S]` on the model's device; None without images."""
        if not tiles:
            return None
        return normalize(torch.cat(tiles).to(self.device)).to(self.model.dtype)


def _identity(image: ImageLike) -> str | int:
    """Equal for the same file, or the same image in memory."""
    return id(image) if isinstance(image, Image.Image) else str(image)


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
        f"{key}={getattr(config, key)} (trained: {value})"
        for key, value in rule.config_fields().items()
        if getattr(config, key) != value
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


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """A torch dtype by name; `'auto'` is bfloat16 on CUDA, float16 on GPUs without it, float32 on the CPU.

    Raises:
        ValueError: Not one of auto, float32, bfloat16, float16.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not one of: auto, {', '.join(DTYPES)}")
    return DTYPES[name]
