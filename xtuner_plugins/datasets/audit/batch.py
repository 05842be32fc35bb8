"""What is in a batch as the model gets it: its samples with their tokens, labels, tiles and weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...html_page import render
from ...hub.constants import IGNORE_INDEX
from ..bad_samples import FILLER
from .cards import MOST_IMAGES, Card, Thumbnails, token_texts
from .texts import IN_CHINESE

PAIR = 3  # segments of a preference pair: prompt, chosen, rejected
MOST_TILES = 4 * MOST_IMAGES  # of a sample


@dataclass(frozen=True)
class Part:
    """One sample of a batch.

    Attributes:
        source, dataset: 'file:line' and name of its file; `FILLER` where a rank has no sample left.
        row, first: where it begins.
        segments: lengths of the parts that attend only to themselves (of a pair: prompt, chosen, rejected answer).
        ids, labels: int64 `[s]`.
        tiles: uint8 `[T, 3, S, S]`.
        weight: of its loss.
    """

    source: str
    dataset: str
    row: int
    first: int
    segments: tuple[int, ...]
    ids: torch.Tensor
    labels: torch.Tensor
    tiles: torch.Tensor
    weight: float

    @property
    def num_learned(self) -> int:
        """Tokens that are predicted: labels that aren't -100."""
        return int((self.labels != IGNORE_INDEX).sum())


def split_batch(batch: dict[str, Any]) -> list[Part]:
    """The samples of a collated batch, by the boundaries that the model gets."""
    weights = batch.get("loss_weights")
    counts = batch["num_tiles"].tolist()
    ends = np.cumsum([0, *counts])
    parts = []
    for index, (row, first, segments) in enumerate(_places(batch)):
        last = first + sum(segments)
        parts.append(
            Part(
                batch["sources"][index],
                batch["datasets"][index],
                row,
                first,
                segments,
                batch["input_ids"][row, first:last],
                batch["labels"][row, first:last],
                batch["tiles"][ends[index] : ends[index + 1]],
                1.0 if weights is None else float(weights[index]),
            )
        )
    return parts


def _places(batch: dict[str, Any]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Row, first token and segments of each sample."""
    num_samples = len(batch["sources"])
    if "cu_seqlens" not in batch:
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            yield row, 0, (length,)
        return
    edges, each = batch["cu_seqlens"].tolist(), PAIR if "follows" in batch else 1
    for index in range(num_samples):
        own = edges[index * each : (index + 1) * each + 1]
        yield 0, own[0], tuple(end - start for start, end in zip(own[:-1], own[1:], strict=True))


def padding_of(batch: dict[str, Any]) -> int:
    """Positions of a batch that hold no token."""
    return int((~batch["attention_mask"]).sum())


def describe_batch(batch: dict[str, Any]) -> list[str]:
    """A line about the batch, and one per sample."""
    rows, length = batch["input_ids"].shape
    parts = split_batch(batch)
    learned = sum(part.num_learned for part in parts)
    lines = [
        f"{rows} x {length:,} tokens, {padding_of(batch):,} of them padding, {learned:,} learned; "
        f"{int(batch['num_tiles'].sum()):,} tiles; {len(parts)} samples"
    ]
    for part in parts:
        if part.source == FILLER:
            lines.append(f"  {FILLER}")
            continue
        where = f"row {part.row}" if rows > 1 else f"from {part.first:,}"
        weight = "" if part.weight == 1 else f", weight {part.weight:g}"
        tiles = f"{len(part.tiles)} tile{'' if len(part.tiles) == 1 else 's'}"
        facts = f"{len(part.ids):,} tokens ({part.num_learned:,} learned), {tiles}{weight}"
        lines.append(f"  {where:>12}: {part.source} [{part.dataset}] {facts}")
    lines += [f"  left out, {each['dropped']}: {each['message']}" for each in batch.get("dropped", ())]
    return lines


def write_batch_page(path: str | Path, title: str, facts: Sequence[str], batches: Sequence[dict], tokenizer) -> None:
    """Write a page with the batches of a step: boundaries, attention, labels in color, the tiles themselves.

    Args:
        title, facts: of the step, shown at the top.
        batches: its micro-batches.
        tokenizer: of the dataset.
    """
    thumbnails = Thumbnails(None)
    shown = [_shown(batch, tokenizer, thumbnails) for batch in batches]
    page = render(
        Path(__file__).parent,
        "batch.html.jinja",
        title=title,
        facts=facts,
        batches=shown,
        images=thumbnails.sources,
        languages=IN_CHINESE,
        filler=FILLER,
    )
    Path(path).write_text(page, encoding="utf-8", errors="replace")


def _shown(batch: dict[str, Any], tokenizer, thumbnails: Thumbnails) -> dict[str, Any]:
    parts = split_batch(batch)
    rows, length = batch["input_ids"].shape
    bars: list[list[dict]] = [[] for _ in range(rows)]
    for number, part in enumerate(parts, 1):
        bars[part.row].append(
            {
                "number": number,
                "percent": 100 * len(part.ids) / length,
                "learned": part.num_learned / max(1, len(part.ids)),
                "tiles": len(part.tiles),
                "tokens": len(part.ids),
                "segments": [round(100 * size / length, 3) for size in part.segments],
                "first": round(100 * part.first / length, 3),
            }
        )
    return {
        "rows": rows,
        "length": length,
        "padding": padding_of(batch),
        "learned": sum(part.num_learned for part in parts),
        "num_tiles": int(batch["num_tiles"].sum()),
        "bars": bars,
        "parts": [_card(number, part, tokenizer, thumbnails) for number, part in enumerate(parts, 1)],
        "dropped": [(each["dropped"], each["message"]) for each in batch.get("dropped", ())],
    }


def _card(number: int, part: Part, tokenizer, thumbnails: Thumbnails) -> Card:
    branches = part.segments if len(part.segments) == PAIR else None
    texts = {"runs": [], "answers": []}
    if part.source != FILLER:
        texts |= token_texts(tokenizer, part.ids.numpy(), part.labels.numpy(), branches)
    return {
        "number": number,
        "source": part.source,
        "dataset": part.dataset,
        "tokens": len(part.ids),
        "learned": part.num_learned,
        "weight": part.weight,
        "num_tiles": len(part.tiles),
        "tiles": [_tile(tile, thumbnails) for tile in part.tiles[:MOST_TILES]],
        **texts,
    }


def _tile(tile: torch.Tensor, thumbnails: Thumbnails) -> int:
    return thumbnails.add(Image.fromarray(tile.permute(1, 2, 0).numpy()))
