"""Collated batches become one row of tokens: samples behind each other, without padding.

All that depends on the content of a batch is counted here, on the CPU: which positions hold image features, which are
supervised, where samples begin. The model's forward and backward then have shapes that no device must be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ..hub.constants import IGNORE_INDEX
from .attention import Segments, branch_off
from .sequence_parallel import Share, size_of


class Rates(NamedTuple):
    """Which tiles of a row have few tokens and which have many (Flash): int64 indices of tiles, and their positions."""

    few: torch.Tensor
    many: torch.Tensor
    few_positions: torch.Tensor
    many_positions: torch.Tensor


class Row(NamedTuple):
    """The tokens of a batch in one row.

    S, P and K of a row that `cut` has made are the cut's, and its positions count from its start.
    """

    input_ids: torch.Tensor  # int64 ``[1, S]``
    position_ids: torch.Tensor  # int64 ``[1, S]``, from 0 in each sample; an answer goes on from its prompt
    segments: Segments  # samples, or prompts and the answers that follow them; padding of a pack is one more
    image_positions: torch.Tensor  # int64 ``[P]``, of the image tokens, in order
    predicting: torch.Tensor  # int64 ``[K]``, the positions whose next token is supervised
    targets: torch.Tensor  # int64 ``[K]``, these next tokens
    weights: torch.Tensor | None  # float32 ``[K]``, of the targets; None weighs all the same
    owners: torch.Tensor  # int64 ``[K]``, the segment that each target belongs to
    reference: torch.Tensor | None = None  # float32 ``[K]``, the reference's log probabilities of the targets
    share: Share | None = None  # this rank's part of the images of a row that was cut
    rates: Rates | None = None  # where some tiles are compressed

    @property
    def num_supervised(self) -> int:
        """Targets that count."""
        return len(self.owners)

    def with_stand_in(self) -> Row:
        """The row; without targets it gets one of weight 0 that nobody owns: the head must run on every rank."""
        if self.num_supervised:
            return self
        nothing = torch.zeros(1, dtype=torch.int64)
        return self._replace(predicting=nothing, targets=nothing, weights=torch.zeros(1))


def make_row(batch: Mapping[str, torch.Tensor], image_token: int) -> Row:
    """The row of a collated batch, padded or packed, on its device (the CPU).

    Args:
        batch: ``input_ids`` int64 ``[B, S]``. Optionally ``labels`` int64 ``[B, S]``; ``attention_mask`` bool
            ``[B, S]``, True at real tokens; ``cu_seqlens`` int32 ``[n + 1]``, rising from 0, of a packed row (B is 1);
            with it ``follows`` int64 ``[n]``: the index of the earlier segment that a segment continues, or -1;
            ``loss_weights`` float32, one per sample; ``reference`` float32 ``[K]``.
        image_token: id that stands for one image feature.
    """
    ids, kept = batch["input_ids"], torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if "cu_seqlens" in batch:  # tokens behind the last are one segment more
        bounds = torch.cat([batch["cu_seqlens"].long(), torch.tensor([ids.numel()])]).unique_consecutive()
    else:
        kept = batch.get("attention_mask", kept).bool()
        bounds = F.pad(kept.sum(1).cumsum(0), (1, 0))
    lengths, given = bounds.diff(), batch.get("follows", bounds[:0])
    follows = F.pad(given, (0, len(lengths) - len(given)), value=-1)
    samples, positions = torch.arange(len(lengths)).repeat_interleave(lengths), torch.arange(int(bounds[-1]))
    starts = bounds[:-1] - torch.where(follows < 0, 0, lengths[follows])
    before = positions - 1
    before[bounds[:-1]] = torch.where(follows < 0, -1, bounds[1:][follows] - 1)
    ids = ids[kept]
    labels = batch["labels"][kept].clone() if "labels" in batch else torch.full_like(ids, IGNORE_INDEX)
    labels[before < 0] = IGNORE_INDEX  # nothing predicts the first token of a sample
    places = (labels != IGNORE_INDEX).nonzero().flatten()
    weights = batch.get("loss_weights")
    if weights is not None:
        if len(given):  # one weight for a prompt and its answers
            weights = weights.repeat_interleave(len(given) // len(weights))
        weights = weights[samples[places]].float()
    row = Row(
        input_ids=ids[None],
        position_ids=(positions - starts[samples])[None],
        segments=segments_of(bounds, follows if len(given) else None),
        image_positions=(ids == image_token).nonzero().flatten(),
        predicting=before[places],
        targets=labels[places],
        weights=weights,
        owners=samples[places],
        reference=batch.get("reference"),
    )
    return row.with_stand_in()


def fill_row(row: Row, multiple: int) -> Row:
    """The row, on the CPU, with padding up to a multiple of tokens, as one segment more that nothing else sees.

    Rows then have fewer different lengths, so the allocator of a GPU finds a block that fits more often.
    """
    length, branches = row.input_ids.shape[1], row.segments.branches
    padding = -length % multiple
    if not padding:
        return row
    bounds = torch.tensor([*row.segments.bounds, length + padding])
    return row._replace(
        input_ids=F.pad(row.input_ids, (0, padding)),
        position_ids=torch.cat([row.position_ids, torch.arange(padding)[None]], dim=1),
        segments=segments_of(bounds, None if branches is None else torch.tensor([*branches.follows, -1])),
    )


def cut(row: Row, tiles: torch.Tensor, group: dist.ProcessGroup) -> tuple[Row, torch.Tensor]:
    """This rank's cut of a row, and its part of the tiles; the segments stay those of the whole row.

    Args:
        row: On the CPU, filled to a multiple of the group's size.
        tiles: ``[T, 3, H, W]``, all of the row's.
        group: Of `sequence_parallel.own_group`.
    """
    size, rank = size_of(group), dist.get_rank(group)
    length = row.input_ids.shape[1] // size
    tokens = slice(rank * length, (rank + 1) * length)

    def inside(positions: torch.Tensor) -> torch.Tensor:
        return ((positions >= tokens.start) & (positions < tokens.stop)).nonzero().flatten()

    own, images = inside(row.predicting[: row.num_supervised]), inside(row.image_positions)
    first, per_rank = int((row.image_positions < tokens.start).sum()), -(-len(tiles) // size)
    encoded = slice(*(min(each * per_rank, len(tiles)) for each in (rank, rank + 1)))
    part = row._replace(
        input_ids=row.input_ids[:, tokens],
        position_ids=row.position_ids[:, tokens],
        segments=row.segments._replace(group=group),
        image_positions=row.image_positions[images] - tokens.start,
        predicting=row.predicting[own] - tokens.start,
        targets=row.targets[own],
        # Given on each rank, because on some a stand-in has one.
        weights=torch.ones(len(own)) if row.weights is None else row.weights[own],
        owners=row.owners[own],
        reference=None if row.reference is None else row.reference[own],
        share=Share(len(tiles), encoded, slice(first, first + len(images))),
    )
    return part.with_stand_in(), tiles[encoded]


def segments_of(bounds: torch.Tensor, follows: torch.Tensor | None) -> Segments:
    """The segments of boundaries int64 ``[n + 1]``, and of ``follows`` as `make_row` takes it."""
    places = tuple(bounds.tolist())
    return Segments(places, bounds.int(), None if follows is None else branch_off(places, tuple(follows.tolist())))


def check_counts(row: Row, num_tiles: Sequence[int], tokens_per_tile: int, sources: Sequence[str]) -> None:
    """Raises `ValueError` where image tokens and tiles don't match; names both counts and the samples at fault."""
    expected, found = sum(num_tiles) * tokens_per_tile, len(row.image_positions)
    owners = torch.bucketize(row.image_positions, torch.tensor(row.segments.bounds[1:]), right=True)
    counts = zip(sources, torch.bincount(owners, minlength=len(num_tiles)).tolist(), num_tiles, strict=False)
    wrong = [str(source) for source, tokens, tiles in counts if tokens != tiles * tokens_per_tile]
    if found != expected or wrong:
        raise ValueError(
            f"{found} image tokens in the text, but {expected} image features "
            f"({sum(num_tiles)} tiles x {tokens_per_tile} tokens){'; at fault: ' * bool(wrong)}{', '.join(wrong)}"
        )
