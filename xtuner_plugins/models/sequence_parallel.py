"""Sequence parallelism: a group of ranks holds one row of tokens, each rank a cut of it.

Everything but attention works on single tokens, so each rank computes it for its own. Before attention the ranks
exchange tokens for heads, and after it heads for tokens (Ulysses, arXiv:2309.14509)::

    rank 0   tokens a a a b, all heads  ->  a a a b b b c .  heads 0 1  ->  a a a b, all heads
    rank 1   tokens b b c ., all heads  ->  a a a b b b c .  heads 2 3  ->  b b c ., all heads

Every rank of a group reads the whole batch, and knows where its samples begin. Tiles are shared out, too: each rank
encodes its part, and all get the features of all. What a rank returns are its parts: their sums over ranks are those
of the row, and so are the sums of gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.nn.functional import all_to_all_single

if TYPE_CHECKING:
    from .rows import Row

_ROTATIONS_BY_LENGTH = ("dynamic", "longrope")  # they depend on the longest sample of all that a rank sees


class Share(NamedTuple):
    """What a rank has of a row's images."""

    num_tiles: int  # of the whole row
    tiles: slice  # of them, those that this rank encodes
    features: slice  # of the features of all tiles, those that stand in this rank's tokens


def own_group(num_ranks: int) -> dist.ProcessGroup | None:
    """The group of so many ranks that shares rows with this one; None where a rank has rows of its own, or runs alone.

    Every rank calls it, because groups are made together. `PlanSampler` has checked the number.
    """
    if num_ranks == 1 or not dist.is_initialized():
        return None
    return dist.new_subgroups(num_ranks)[0]


def size_of(group: dist.ProcessGroup | None) -> int:
    """Ranks that share a row."""
    return 1 if group is None else dist.get_world_size(group)


def check_heads(llm: Mapping[str, Any], num_ranks: int) -> None:
    """Raises `ValueError` where ranks can't share out an LLM's heads; too few heads of keys would be repeated."""
    heads = llm["num_attention_heads"]
    kv_heads = llm.get("num_key_value_heads") or heads
    if heads % math.lcm(kv_heads, num_ranks):
        fitting = [str(each) for each in (1, 2, 4, 8) if heads % math.lcm(kv_heads, each) == 0]
        raise ValueError(
            f"sequence_parallel={num_ranks}: so many ranks can't share the {heads} attention heads of this LLM "
            f"({kv_heads} of keys); set it to {' or '.join(fitting)}"
        )


def check_rotations(row: Row, llm: Any) -> None:
    """Raises `ValueError` where ranks would rotate their cuts differently: a sample is too long for a scaled LLM."""
    scaling = getattr(llm, "rope_scaling", None) or {}
    kind, longest = scaling.get("rope_type", scaling.get("type")), row.segments.longest
    if row.segments.group is not None and kind in _ROTATIONS_BY_LENGTH and longest > llm.max_position_embeddings:
        raise ValueError(
            f"sequence_parallel={size_of(row.segments.group)}: a sample has {longest:,} tokens, and this LLM scales "
            f"positions by the longest one ({kind}); set max_length to {llm.max_position_embeddings:,}, or "
            "sequence_parallel to 1"
        )


def cut(row: Row, tiles: torch.Tensor, group: dist.ProcessGroup) -> tuple[Row, torch.Tensor]:
    """This rank's cut of a row, and its part of the tiles; the segments stay those of the whole row.

    Args:
        row: On the CPU, filled to a multiple of the group's size.
        tiles: ``[T, 3, H, W]``, all of the row's.
        group: Of `own_group`.
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


def exchange(parts: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """``[ranks, ...]`` -> ``[ranks, ...]``: part i goes to rank i, and that of rank i for this one comes in its place.

    The gradients are exchanged likewise.
    """
    # Not `empty_like`: for a transposed tensor it keeps the strides, which would mix the data in silence.
    return all_to_all_single(parts.new_empty(parts.shape), parts.contiguous(), group=group)


def gather(part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """``[...]`` of each rank -> ``[ranks, ...]`` on all; its gradient is the sum of all ranks' gradients."""
    return exchange(part.expand(size_of(group), *part.shape), group)


def sum_over_group(part: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The sum of the ranks' parts, on all of them, with gradient; without a group the part itself."""
    return part if group is None else gather(part, group).sum(0)


def gather_features(features: torch.Tensor, row: Row) -> torch.Tensor:
    """The image features ``[F, D]`` of a rank's tokens; some rank has tiles.

    Args:
        features: ``[t, N, D]`` of the tiles that this one has encoded, or of a black one where it has none.
        row: Its row.
    """
    if row.share is None:
        return features.flatten(0, 1)
    own = features[: row.share.tiles.stop - row.share.tiles.start]
    missing = -(-row.share.num_tiles // size_of(row.segments.group)) - len(own)
    padded = F.pad(own, (0, 0, 0, 0, 0, missing))  # behind all that are real
    return gather(padded, row.segments.group).flatten(0, 2)[row.share.features]


def tokens_to_heads(group: dist.ProcessGroup | None, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """States ``[1, H, s, D]`` of this rank's tokens -> ``[1, H / ranks, S, D]`` of all tokens; itself without a group.

    Heads fewer than ranks are repeated. All states travel together.
    """
    if group is None:
        return states
    size, parts = size_of(group), []
    for state in states:
        repeats = math.lcm(state.shape[1], size) // state.shape[1]
        parts.append(state.repeat_interleave(repeats, 1).reshape(size, -1, *state.shape[2:]))
    mixed = exchange(torch.cat(parts, dim=1), group).transpose(0, 1).flatten(1, 2)
    return tuple(state[None] for state in mixed.split([part.shape[1] for part in parts]))


def heads_to_tokens(output: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Outputs ``[1, S, H / ranks, D]`` of all tokens -> ``[1, s, H, D]`` of this rank's; itself without a group."""
    if group is None:
        return output
    parts = output.reshape(size_of(group), -1, *output.shape[2:])
    return exchange(parts, group).transpose(0, 1).flatten(1, 2)[None]
