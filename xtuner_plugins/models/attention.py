"""Attention over packs: several samples in one row that don't see each other."""

from __future__ import annotations

import torch


def packed_causal_mask(cu_seqlens: torch.Tensor, length: int) -> torch.Tensor:
    """The mask of a packed row: causal inside each sample, nothing across.

    ::

        cu_seqlens = [0, 2, 5]          0 1 2 3 4   (keys)
                                     0  x
                                     1  x x
                                     2      x
                                     3      x x
                                     4      x x x

    Args:
        cu_seqlens: int32 ``[n + 1]``, the start of each sample and the end of the last. Later positions are padding;
            each sees itself, so that no row of the mask is empty.
        length: S, the length of the row.

    Returns:
        bool ``[1, 1, S, S]``, True where a query (row) may look at a key (column).
    """
    positions = torch.arange(length, device=cu_seqlens.device)
    sample = samples_of_positions((1, length), cu_seqlens, cu_seqlens.device)[0]
    same_sample = sample[:, None] == sample[None, :]
    causal = positions[:, None] >= positions[None, :]
    is_padding = positions >= cu_seqlens[-1]
    itself = positions[:, None] == positions[None, :]
    mask = same_sample & causal & (itself | ~is_padding[:, None])
    return mask[None, None]


def samples_of_positions(shape: tuple[int, int], cu_seqlens: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """The sample that each position belongs to: the index of the row, or of the segment in a packed row.

    Args:
        shape: (B, S).
        cu_seqlens: int32 ``[n + 1]`` of a packed row, or None.
        device: Device of the result.

    Returns:
        int64 ``[B, S]``; n at padding after the last segment.
    """
    batch_size, length = shape
    if cu_seqlens is None:
        return torch.arange(batch_size, device=device)[:, None].expand(batch_size, length)
    positions = torch.arange(length, device=device)
    return torch.bucketize(positions, cu_seqlens[1:].to(device), right=True)[None]


def check_boundaries(cu_seqlens: torch.Tensor, batch_size: int, length: int) -> None:
    """Raises where boundaries don't fit the batch.

    Raises:
        ValueError: Several rows, or boundaries that don't start at 0, don't rise, or end after the row.
    """
    bounds = cu_seqlens.tolist()
    rising = all(a < b for a, b in zip(bounds, bounds[1:], strict=False))
    if batch_size != 1 or bounds[0] != 0 or not rising or bounds[-1] > length:
        raise ValueError(
            f"a pack is one row with rising boundaries from 0 to at most its length; got {batch_size} rows of "
            f"{length} tokens and boundaries {bounds[:4]}...{bounds[-1]}"
        )
