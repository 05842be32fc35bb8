"""Cards of samples, for the page of the check and that of a step: tokens by what is learned, images, tiles."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..datasets.images.media import load_image
from ..datasets.images.video import load_frames
from ..datasets.plan.measure import Measure
from ..datasets.records.boxes import COLOR, find_boxes
from ..datasets.records.records import Record
from ..hub.constants import IGNORE_INDEX

SIDE, TILE = 360, 96  # px, longest side of a stored image and of a tile
MOST_IMAGES, MOST_TILES = 6, 26  # of a card
MOST_TEXT = 6000  # characters of a card

Run = tuple[str, str]  # 'learn', 'span' (number of image tokens), 'head' or 'plain', and a text


def embed(image: Image.Image, side: int = SIDE) -> str:
    """An image, made smaller, as a data URL."""
    image = image.copy()
    image.thumbnail((side, side))
    image.save(buffer := io.BytesIO(), "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def embed_tiles(tiles: torch.Tensor) -> list[str]:
    """The first tiles of a sample, uint8 `[T, 3, S, S]`, as data URLs."""
    return [embed(Image.fromarray(tile.permute(1, 2, 0).numpy()), TILE) for tile in tiles[:MOST_TILES]]


def token_runs(tokenizer: Any, ids: np.ndarray, labels: np.ndarray, branches: Sequence[int] = ()) -> list[Run]:
    """Tokens as the model gets them, run by run; of a preference pair with heads before its two answers.

    Args:
        ids, labels: int64 `[s]`.
        branches: lengths of prompt, chosen and rejected answer of a pair.
    """
    runs: list[Run] = []
    ends = np.cumsum(branches)[:-1].astype(int) if len(branches) else []
    for name, part, own in zip(("", "chosen", "rejected"), np.split(ids, ends), np.split(labels, ends), strict=False):
        runs += [("head", name)] if name else []
        kinds = np.where(own != IGNORE_INDEX, 1, np.where(part == tokenizer.image_context_id, 2, 0))
        edges = np.flatnonzero(np.diff(kinds)) + 1
        for run, kind in zip(np.split(part, edges), np.split(kinds, edges), strict=True):
            if len(run):
                text = f"{len(run):,}" if kind[0] == 2 else tokenizer.decode(run.tolist())
                runs.append((("plain", "learn", "span")[kind[0]], text))
    return shorten(runs)


def turn_runs(record: Record) -> list[Run]:
    """The texts of a record as it is written, without a model."""
    runs: list[Run] = []
    for turn in record.turns:
        text = "".join(part if isinstance(part, str) else f"<{part.kind}>" for part in turn.parts)
        runs += [("head", turn.role), ("learn" if turn.role == "assistant" and turn.supervised else "plain", text)]
    return shorten(runs)


def shorten(runs: Sequence[Run]) -> list[Run]:
    """The first `MOST_TEXT` characters."""
    kept, left = [], MOST_TEXT
    for kind, text in runs:
        kept.append((kind, text if len(text) <= left else f"{text[:left]} …"))
        left -= len(text)
        if left <= 0:
            break
    return kept


def pictures(task: Measure, record: Record) -> list[tuple[str, str]]:
    """(caption, data URL) of the first images and of a frame of each video; boxes are drawn into a single image.

    Raises:
        DataError: one can't be opened.
    """
    found = []
    for medium in record.media[:MOST_IMAGES]:
        path = task.folder.resolve(medium.name)
        if medium.kind == "video":
            image = load_frames(path, task.num_frames)[0]
        else:
            image = load_image(path)
        size = f"{image.width}×{image.height}"
        if len(record.media) == 1:
            image = _with_boxes(image, record)
        found.append((f"{str(path).rpartition('/')[2]} {size}", embed(image)))
    return found


def _with_boxes(image: Image.Image, record: Record) -> Image.Image:
    image, frame = image.copy(), (1000, 1000)
    image.thumbnail((SIDE, SIDE))
    if record.extra.get("boxes") == "pixel":
        frame = record.extra.get("width") or image.width, record.extra.get("height") or image.height
    for box in find_boxes(" ".join(turn.text for turn in record.turns)):
        corners = zip(box, image.size * 2, frame * 2, strict=True)
        x1, y1, x2, y2 = (value * side / whole for value, side, whole in corners)
        if x1 <= x2 and y1 <= y2:
            ImageDraw.Draw(image).rectangle((x1, y1, x2, y2), outline=COLOR, width=3)
    return image
