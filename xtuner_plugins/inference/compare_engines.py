"""Where engines part from ours on the same questions: tiles, prompt, log probabilities or answer.

The stages follow each other: other tiles make another prompt, another prompt other probabilities, and these another
answer. So the first stage that differs is the cause to look at::

    image -> tiles -> prompt ids -> log probabilities of the first token -> answer

Ours is `ChatSession` on the export: what training and evaluation compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from ..datasets.images.media import load_image
from ..datasets.images.tiling import DynamicTiling, Grid, resize_to_grid
from ..hub.constants import IMAGE_CONTEXT, IMAGENET_STD
from ..hub.prompts import token_id
from .engines import Engine, Reading
from .questions import Question
from .session import ChatSession, normalize

STAGES = ("tiles", "ids", "log probabilities", "answer")
# Of log probabilities. Torchvision rounds some pixels of a resized image to the neighboring level: 0.0007 on a toy
# model. llama.cpp makes the thumbnail from the resized image: 0.013.
TOLERANCE = 0.02
# Mean difference of pixels, in levels of 255, up to which tiles are the same: 0.004 by torchvision's rounding.
PIXEL_LEVELS = 0.25
TOP = 20  # likeliest first tokens; servers tell no more
_TEXTS = 1000  # likeliest tokens of ours that are looked up by their text


@dataclass(frozen=True)
class Reference:
    """What our code makes of a question.

    Attributes:
        question: What is asked.
        grids: Of its images.
        tiling: The rule that cut them.
        tiles: Uint8 `[T, 3, S, S]`, all images in order; None without images.
        ids: Of the prompt.
        first: Log probabilities of the first token `[V]`.
        by_text: The likeliest of them by the token's text, where one token alone has it.
        answer: The greedy one.
    """

    question: Question
    grids: list[Grid]
    tiling: DynamicTiling
    tiles: torch.Tensor | None
    ids: list[int]
    first: torch.Tensor
    by_text: Mapping[str, float]
    answer: str

    @property
    def num_tiles(self) -> int:
        """Of all images, thumbnails included."""
        return sum(grid.num_tiles for grid in self.grids)


@dataclass(frozen=True)
class Finding:
    """A stage of one question.

    Attributes:
        same: None where the engine doesn't tell.
        figure: What was found, for a table.
        text: The same in words.
    """

    same: bool | None
    figure: str = "-"
    text: str = "not told"


@dataclass(frozen=True)
class Comparison:
    """An engine on one question.

    Attributes:
        question: Its id.
        findings: By stage; empty where the engine failed.
        answer: The engine's.
        failure: Why there are no findings.
    """

    question: str
    findings: Mapping[str, Finding] = field(default_factory=dict)
    answer: str | None = None
    failure: str | None = None

    @property
    def parts_at(self) -> str | None:
        """The first stage that differs."""
        return next((stage for stage in STAGES if stage in self.findings and self.findings[stage].same is False), None)

    @property
    def agrees(self) -> bool:
        """Nothing that the engine tells differs."""
        return self.failure is None and self.parts_at is None


class Ours:
    """Our side of the comparison, and the facts by which the others are read.

    Args:
        session: Over the export.
        max_new_tokens: Length limit of the answers.
    """

    def __init__(self, session: ChatSession, max_new_tokens: int):
        self.session, self._max_new_tokens = session, max_new_tokens
        self.per_tile, self.num_rows = session.model.num_image_token, session.model.config.llm_config.vocab_size
        self.context_id = token_id(session.tokenizer, IMAGE_CONTEXT)
        self.tokenizer = session.tokenizer

    def close(self) -> None:
        """Frees the model: one engine at a time is in memory."""
        del self.session

    def read(self, question: Question) -> Reference:
        """What our code makes of a question.

        Raises:
            ValueError: An image can't be read, or placeholders don't fit the images.
        """
        session, images = self.session, [load_image(path) for path in question.paths]
        session.reset()
        ids, first = session.prompt_ids(question.text, images), session.first_log_probabilities(question.text, images)
        tiles = session.tiles(images)
        answer = session.ask(question.text, images, max_new_tokens=self._max_new_tokens)
        return Reference(
            question,
            session.grids(images),
            session.shared_tiling(len(images)),
            torch.cat(tiles) if tiles else None,
            ids,
            first,
            self._by_text(first),
            answer.strip(),
        )

    def _by_text(self, first: torch.Tensor) -> dict[str, float]:
        likeliest = first.topk(min(_TEXTS, len(first)))
        found: dict[str, list[float]] = {}
        for index, value in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True):
            found.setdefault(self.tokenizer.decode([index]), []).append(value)
        return {text: values[0] for text, values in found.items() if len(values) == 1 and "\ufffd" not in text}


def compare(ours: Ours, reference: Reference, reading: Reading, tolerance: float = TOLERANCE) -> Comparison:
    """What an engine tells about a question, against what our code makes of it.

    Args:
        ours: The facts.
        reference: Of the question.
        reading: Of the same question.
        tolerance: Largest difference of log probabilities that is none.
    """
    findings = {
        "tiles": _tiles(ours, reference, reading),
        "ids": _ids(ours, reference, reading),
        "log probabilities": _first(reference, reading, tolerance),
        "answer": _answer(reference.answer, reading.answer),
    }
    return Comparison(reference.question.id, findings, reading.answer)


def ask_all(
    engine: Engine, ours: Ours, references: Sequence[Reference], *, max_new_tokens: int, tolerance: float, resize: bool
) -> Iterator[Comparison]:
    """An engine on all questions; a question that it refuses is a failure of its own.

    Args:
        engine: To ask.
        ours: The facts.
        references: Of the questions.
        max_new_tokens: Length limit of the answers.
        tolerance: As for `compare`.
        resize: Send images at the size of their official grid.
    """
    for reference in references:
        question = reference.question
        try:
            images = [load_image(path) for path in question.paths]
            if resize:
                images = [resize_to_grid(image, reference.tiling) for image in images]
            reading = engine.read(question.text, images, max_new_tokens, TOP)
        except ValueError as error:
            yield Comparison(question.id, failure=str(error))
            continue
        yield compare(ours, reference, reading, tolerance)


def _tiles(ours: Ours, reference: Reference, reading: Reading) -> Finding:
    """By the image tokens of the prompt and by pixels; else by the prompt's length."""
    own = reference.num_tiles
    if not reference.grids:
        return Finding(True, "0", "no images")
    if reading.ids is not None:
        found, how = reading.ids.count(ours.context_id) / ours.per_tile, ""
    elif reading.num_tokens is not None:
        found, how = own + (reading.num_tokens - len(reference.ids)) / ours.per_tile, ", by the prompt's length"
    else:
        return Finding(None)
    if found != int(found) or found < 0:  # the prompts differ in something else
        return Finding(None)
    if found != own:
        return Finding(
            False, f"{found:.0f} ({own})", f"{found:.0f} instead of {own} ({described(reference.grids)}){how}"
        )
    if reading.pixels is None:
        return Finding(True, str(own), f"{own}{how}")
    levels = _levels(reference.tiles, reading.pixels)
    if levels > PIXEL_LEVELS:
        text = f"{own}, but other pixels: {levels:.2g} of 255 levels apart on average"
        return Finding(False, f"{own}, others", text)
    return Finding(True, str(own), f"{own}, pixels {levels:.2g} of 255 levels apart on average")


def _levels(tiles: torch.Tensor, pixels: torch.Tensor) -> float:
    """Mean difference of pixels in levels of 255."""
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return ((normalize(tiles) - pixels).abs() * std * 255).mean().item()


def _ids(ours: Ours, reference: Reference, reading: Reading) -> Finding:
    own, found = reference.ids, reading.ids
    num_found = reading.num_tokens if found is None else len(found)
    if num_found is None:
        return Finding(None)
    figure = f"{num_found:,}" + ("" if num_found == len(own) else f" ({len(own):,})")
    if found is None and num_found == len(own):
        return Finding(None, figure, f"{num_found:,}, as many; which ones isn't told")
    if found is None:
        return Finding(False, figure, f"{num_found:,} instead of {len(own):,}; which ones isn't told")
    if found == own:
        return Finding(True, figure, f"{num_found:,}, the same")
    if _folded(found, ours.context_id) == _folded(own, ours.context_id):
        return Finding(False, figure, f"{num_found:,} instead of {len(own):,}; only image tokens differ")
    at = _first_difference(own, found)
    here, there = (repr(ours.tokenizer.decode(each[at : at + 3])) for each in (own, found))
    return Finding(False, figure, f"the prompts part at token {at:,}: {there} instead of {here}")


def _first_difference(one: Sequence, other: Sequence) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _folded(ids: Sequence[int], context_id: int) -> list[int]:
    """Ids with each run of image tokens as one."""
    return [id for id, run in groupby(ids) for id in ([id] if id == context_id else run)]


def _first(reference: Reference, reading: Reading, tolerance: float) -> Finding:
    """The largest difference over the tokens that the engine tells."""
    gaps = []
    for token, value in (reading.first or {}).items():
        own = reference.by_text.get(token) if isinstance(token, str) else reference.first[token].item()
        if own is not None:
            gaps.append(abs(value - own))
    if not gaps:
        return Finding(None)
    gap = max(gaps)
    # Not above the tolerance, and a number.
    return Finding(gap <= tolerance, f"{gap:.2g}", f"{gap:.2g} apart at most, over {len(gaps)} tokens")


def _answer(own: str, found: str) -> Finding:
    # Bytes of a character that the end cut off are shown in different ways.
    own, found = (text.strip("\ufffd ") for text in (own, found))
    if own == found:
        return Finding(True, "same", "the same")
    return Finding(False, "other", f"the answers part at character {_first_difference(own, found):,}")


def described(grids: Sequence[Grid]) -> str:
    """Grids in words: ``2x1 and a thumbnail``."""
    return ", ".join(f"{grid.columns}x{grid.rows}" + (" and a thumbnail" if grid.thumbnail else "") for grid in grids)
