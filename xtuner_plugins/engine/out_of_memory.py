"""Says which batch needed more memory than there is, and which settings need less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import get_rank

SHOWN_SOURCES = 8
NO_MEMORY = "can't allocate memory"  # how PyTorch's allocator of the CPU says it, in a plain RuntimeError


class OutOfMemory(ValueError):
    """A batch for which the memory of this rank isn't enough; the other ranks are ended by the launcher.

    Args:
        batches: Collated batches, one of which was trained on.
        reason: What the allocator said.
    """

    def __init__(self, batches: Sequence[Mapping[str, Any]], reason: str):
        sources = [str(source) for batch in batches for source in batch.get("sources", ())]
        figures = ", ".join(describe_batch(batch) for batch in batches)
        is_packed = any("cu_seqlens" in batch for batch in batches)
        sizes = "pack_tokens, pack_tiles" if is_packed else "batch_size (and raise accumulative_counts)"
        super().__init__(
            f"out of memory on rank {get_rank()} with {figures}, from the samples {name_sources(sources)} "
            f"({reason.strip().splitlines()[0].rstrip('.')}). To need less, lower {sizes}, max_tiles or max_length, or "
            "set gradient_checkpointing = True; tools/plan.py says in advance what fits"
        )


@contextmanager
def naming(batches: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Turns an allocator's error into `OutOfMemory`.

    Raises:
        OutOfMemory: On this rank alone.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and NO_MEMORY not in str(error):
            raise
        raise OutOfMemory(batches, str(error) or type(error).__name__) from error


def describe_batch(batch: Mapping[str, Any]) -> str:
    """Samples, tokens without padding, and tiles of a collated batch."""
    mask = batch.get("attention_mask")
    tokens = batch["input_ids"].numel() if mask is None else int(mask.sum())
    return f"{len(batch['num_tiles'])} samples of {tokens:,} tokens and {int(batch['num_tiles'].sum())} tiles"


def name_sources(sources: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(sources) - SHOWN_SOURCES
    return (", ".join(sources[:SHOWN_SOURCES]) or "(none named)") + (f" and {more} more" if more > 0 else "")
