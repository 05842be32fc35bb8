"""One session object behind chat, demo and evaluation.

It prompts and generates through `chat` and `batch_chat` of the hub code, the very methods that an exported model
offers, and cuts images with the tiling that training used: what answers here is what was trained and what ships.
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
from ..checkpoints.loader import load_model, load_tokenizer
from ..datasets.base import tiling_of
from ..datasets.images.media import load_image, to_rgb
from ..datasets.images.resize_rules import compare_resize_facts
from ..datasets.images.tiling import DynamicTiling
from ..datasets.plan.budget import first_limit
from ..hub import InternVLChatModel
from ..hub.constants import IMAGE_PLACEHOLDER, IMAGENET_MEAN, IMAGENET_STD

ImageLike = str | Path | Image.Image

# Of red, green and blue in [0, 1], the same in every model of this format and in every program that runs them.
MAX_NEW_TOKENS = 512
_logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ChatSession:
    """A model that holds a conversation about images.

    Args:
        model: The hub code's model, on the device and in the dtype to compute in.
        tokenizer: The tokenizer that belongs to it.
        min_tiles: Fewest tiles per image; the model's own setting when None.
        max_tiles: Most tiles per image, thumbnail not counted; the model's own setting when None.
        use_thumbnail: Add a thumbnail where there is more than one tile; the model's own setting when None.
        tile_sharing: How the images of one question share the limit: `'equal'`, as the official training and ours do
            by default, or `'need'` (each may have all of it).

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
            device: `'auto'` (CUDA where there is one), or a torch device.
            dtype: `'auto'` (on CUDA bfloat16, or float16 where it has none; on the CPU float32), or a name.
            **limits: `min_tiles`, `max_tiles` and `use_thumbnail` of the session.

        Raises:
            ValueError: No such directory, not a model, weights that don't fit, or an impossible device or dtype.
        """
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        model, _ = load_model(directory, dtype=dtype, device=device)
        trained = _read_preprocessing(Path(directory), model.config)
        limits.setdefault("tile_sharing", trained.get("tile_sharing", "equal"))
        return cls(model, load_tokenizer(directory), **limits)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def reset(self) -> None:
        """Forgets the conversation and its images."""
        self.history: list[tuple[str, str]] = []
        self._tiles: list[torch.Tensor] = []

    def ask(
        self,
        question: str,
        images: Sequence[ImageLike] | ImageLike = (),
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stream: Callable[[str], None] | None = None,
        **generation: Any,
    ) -> str:
        """Answers the next question of the conversation.

        Nothing is remembered of a question that fails or is interrupted.

        Args:
            question: May say with `<image>` where each new image belongs; otherwise they go before it, a line each.
            images: New images, as paths or as PIL images.
            max_new_tokens: Longest answer.
            stream: Is given each piece of the answer as it comes.
            **generation: Options of `generate`, such as `do_sample` and `temperature`; greedy by default.

        Returns:
            The whole answer.

        Raises:
            ValueError: An image that can't be read, or not one placeholder an image.
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
        """Answers unconnected questions, batch by batch, greedily unless told otherwise. Leaves the conversation alone.

        Args:
            items: `(question, images)` each; no images is fine.
            batch_size: Questions at a time.
            max_tiles: Most tiles per image, in place of the session's.
            max_new_tokens: Longest answer.
            on_batch: Is told after each batch how many questions it had.
            **generation: Options of `generate`.

        Returns:
            The answers, in order.

        Raises:
            ValueError: An image that can't be read, not one placeholder an image, or impossible numbers.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}, but must be at least 1")
        tiling = self.tiling
        if max_tiles is not None:
            tiling = tiling_of(self.model.config, {**self._limits, "max_tiles": max_tiles})
        answers: list[str] = []
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            images = [self._load(images, tiling) for _, images in batch]
            questions = [
                with_placeholders(question, len(own)) for (question, _), own in zip(batch, images, strict=True)
            ]
            answers += self.model.batch_chat(
                self.tokenizer,
                self._pixels([tiles for own in images for tiles in own]),
                questions,
                {"max_new_tokens": max_new_tokens, "do_sample": False, **generation},
                num_patches_list=[[len(tiles) for tiles in own] for own in images],
            )
            if on_batch is not None:
                on_batch(len(batch))
        return answers

    def _load(self, images: Sequence[ImageLike] | ImageLike, tiling: DynamicTiling) -> list[torch.Tensor]:
        """uint8 `[T, 3, S, S]` of each image of one question, which share the tile limit as in training."""
        if isinstance(images, (str, Path, Image.Image)):
            images = [images]
        tiling = tiling.limited(first_limit(tiling.max_tiles, len(images), self.tile_sharing))
        return [tiling(to_rgb(image) if isinstance(image, Image.Image) else load_image(image)) for image in images]

    def _pixels(self, tiles: list[torch.Tensor]) -> torch.Tensor | None:
        """Normalized `[T, 3, S, S]` on the model's device; None without images."""
        if not tiles:
            return None
        return normalize(torch.cat(tiles).to(self.device)).to(self.model.dtype)


def _read_preprocessing(directory: Path, config) -> dict:
    """What an export was trained with; empty for a directory that doesn't say.

    Warns where its config, or this machine's Pillow, differs from that.

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
    """Hands generated text to a function, word by word."""

    def __init__(self, tokenizer, callback: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.callback = callback

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with text that won't change any more."""
        if text:
            self.callback(text)


def normalize(tiles: torch.Tensor) -> torch.Tensor:
    """uint8 tiles `[T, 3, S, S]` to float32, by ImageNet's mean and deviation: bit-equal to what training does."""
    mean, std = (torch.tensor(values, device=tiles.device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (tiles.float() / 255.0 - mean) / std


def with_placeholders(question: str, num_images: int) -> str:
    """The question with one `<image>` an image; where it has none, they go before it, a line each.

    Raises:
        ValueError: It has some, but not as many as there are images.
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
    """`'auto'` is CUDA where there is one.

    Raises:
        ValueError: No such device.
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
    """`'auto'` is the fastest that the device computes well: float32 on the CPU.

    Raises:
        ValueError: Not one of auto, float32, bfloat16, float16.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not one of: auto, {', '.join(DTYPES)}")
    return DTYPES[name]
