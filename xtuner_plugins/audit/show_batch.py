"""What is in a batch as the model gets it: its samples with their tokens, labels, tiles and weights."""

from typing import Any, NamedTuple

import numpy as np
import torch

from ..datasets.left_out import FILLER
from ..datasets.text.tokens import TextTokenizer
from ..hub.constants import IGNORE_INDEX
from .page import token_runs

PAIR = 3  # segments of a preference pair: prompt, chosen, rejected
MARKS = {"plain": "{}", "learn": "[{}]", "span": "({} image tokens)", "head": " {}: "}  # by the kinds of `token_runs`


class Part(NamedTuple):
    """One sample of a batch."""

    source: str  # 'file:line'; `FILLER` where a rank has no sample left
    dataset: str  # name of its file
    row: int
    first: int  # where it begins in the row
    segments: tuple[int, ...]  # lengths of the parts that attend only to themselves, see `PAIR`
    ids: torch.Tensor  # int64 `[s]`, as `labels`
    labels: torch.Tensor
    tiles: torch.Tensor  # uint8 `[T, 3, S, S]`
    weight: float  # of its loss

    def describe(self) -> str:
        """Such as "from 120: a.jsonl:7 [a] 64 tokens (12 learned), 5 tiles"."""
        if self.source == FILLER:
            return FILLER
        weight = "" if self.weight == 1 else f", weight {self.weight:g}"
        learned, tiles = int((self.labels != IGNORE_INDEX).sum()), len(self.tiles)
        facts = f"{len(self.ids):,} tokens ({learned:,} learned), {tiles} tile{'' if tiles == 1 else 's'}{weight}"
        return f"row {self.row} from {self.first:,}: {self.source} [{self.dataset}] {facts}"


def split_batch(batch: dict[str, Any]) -> list[Part]:
    """The samples of a collated batch, by the boundaries that the model gets.

    Args:
        batch: padded (`collate`), one row (`collate_packed`) or one row of pairs (`collate_pairs`).
    """
    tiles = batch["tiles"].split(batch["num_tiles"].tolist())
    weights = batch.get("loss_weights", torch.ones(len(tiles))).tolist()
    parts, each = [], PAIR if "follows" in batch else 1
    for index, names in enumerate(zip(batch["sources"], batch["datasets"], strict=True)):
        if "cu_seqlens" in batch:
            row, edges = 0, batch["cu_seqlens"][index * each : (index + 1) * each + 1].tolist()
        else:
            row, edges = index, [0, int(batch["attention_mask"][index].sum())]
        place, segments = (row, slice(edges[0], edges[-1])), tuple(np.diff(edges).tolist())
        texts = batch["input_ids"][place], batch["labels"][place]
        parts.append(Part(*names, row, edges[0], segments, *texts, tiles[index], weights[index]))
    return parts


def describe_batch(batch: dict[str, Any], tokenizer: TextTokenizer) -> list[str]:
    """What is in a collated batch, for the terminal.

    Args:
        batch: what `collate`, `collate_packed` or `collate_pairs` gives.
        tokenizer: of the dataset.

    Returns:
        A line about the batch, two for each sample (its figures, and its text as `draw` writes it), and one for each
        sample that was left out.
    """
    rows, length = batch["input_ids"].shape
    padding = int((~batch["attention_mask"]).sum())
    parts = split_batch(batch)
    learned = sum(int((part.labels != IGNORE_INDEX).sum()) for part in parts)
    lines = [
        f"{rows} x {length:,} tokens, {padding:,} of them padding, {learned:,} learned; "
        f"{int(batch['num_tiles'].sum()):,} tiles; {len(parts)} samples"
    ]
    for part in parts:
        lines += [f"  {part.describe()}"] + [f"    {draw(part, tokenizer)}"] * (part.source != FILLER)
    return lines + [f"  left out, {each['dropped']}: {each['message']}" for each in batch.get("dropped", ())]


def draw(part: Part, tokenizer: TextTokenizer) -> str:
    """The tokens of a sample as one line of text: learned ones in brackets, image tokens counted.

    Such as "... <img>(64 image tokens)</img>\\nWhere?<|im_end|>\\n<|im_start|>assistant\\n[There.<|im_end|>]\\n".
    """
    branches = part.segments if len(part.segments) == PAIR else ()
    runs = token_runs(tokenizer, part.ids.numpy(), part.labels.numpy(), branches)
    return "".join(MARKS[kind].format(text) for kind, text in runs).replace("\n", "\\n")
