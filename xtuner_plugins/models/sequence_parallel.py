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
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.nn.functional import all_to_all_single

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


def check_rotations(longest: int, llm: Any, group: dist.ProcessGroup | None) -> None:
    """Raises `ValueError` where ranks would rotate their cuts differently: a sample is too long for a scaled LLM."""
    scaling = getattr(llm, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if group is not None and kind in _ROTATIONS_BY_LENGTH and longest > llm.max_position_embeddings:
        raise ValueError(
            f"sequence_parallel={size_of(group)}: a sample has {longest:,} tokens, and this LLM scales "
            f"positions by the longest one ({kind}); set max_length to {llm.max_position_embeddings:,}, or "
            "sequence_parallel to 1"
        )


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


def gather_features(features: torch.Tensor, share: Share | None, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The image features ``[F, D]`` of a rank's tokens; some rank has tiles.

    Args:
        features: ``[t, N, D]`` of the tiles that this one has encoded, or of a black one where it has none.
        share: This rank's, of a row that was cut.
        group: The ranks that share the row.
    """
    if share is None:
        return features.flatten(0, 1)
    own = features[: share.tiles.stop - share.tiles.start]
    missing = -(-share.num_tiles // size_of(group)) - len(own)
    padded = F.pad(own, (0, 0, 0, 0, 0, missing))  # behind all that are real
    return gather(padded, group).flatten(0, 2)[share.features]


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
