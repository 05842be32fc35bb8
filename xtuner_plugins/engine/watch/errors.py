"""What a run ends of, in one line: memory that ran out, a rank that is gone, a loading process that ended."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_rank

from .stopping import command_to_go_on

SHOWN_SOURCES = 8
NO_MEMORY = "can't allocate memory"  # how PyTorch's allocator of the CPU says it, in a plain RuntimeError
# gloo raises plain RuntimeErrors: "[.../gloo/transport/tcp/pair.cc:538] Read error [10.0.0.2]:2788: Connection reset"
_GLOO = re.compile(r"gloo/\S*\] (?P<reason>.*)", re.DOTALL)
_WORKER = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (?P<how>[^.\n]*)")


class OutOfMemory(ValueError):
    """A batch for which the memory of this rank isn't enough; the other ranks are ended by the launcher."""


def _describe(batch: Mapping[str, Any]) -> str:
    mask = batch.get("attention_mask")
    tokens = batch["input_ids"].numel() if mask is None else int(mask.sum())
    return f"{len(batch['num_tiles'])} samples of {tokens:,} tokens and {int(batch['num_tiles'].sum())} tiles"


@contextmanager
def naming(batches: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Turns an allocator's error into `OutOfMemory`.

    Args:
        batches: Collated batches, one of which is trained on.

    Raises:
        OutOfMemory: On this rank alone.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and NO_MEMORY not in str(error):
            raise
        sources = [str(source) for batch in batches for source in batch.get("sources", ())]
        figures, reason = ", ".join(map(_describe, batches)), (str(error) or type(error).__name__).strip()
        is_packed = any("cu_seqlens" in batch for batch in batches)
        sizes = "pack_tokens, pack_tiles" if is_packed else "batch_size (and raise accumulative_counts)"
        raise OutOfMemory(
            f"out of memory on rank {get_rank()} with {figures}, from the samples {name_sources(sources)} "
            f"({reason.splitlines()[0].rstrip('.')}). To need less, lower {sizes}, max_tiles or max_length, or "
            "set gradient_checkpointing = True; tools/plan.py says in advance what fits"
        ) from error


def name_sources(sources: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(sources) - SHOWN_SOURCES
    return (", ".join(sources[:SHOWN_SOURCES]) or "(none named)") + (f" and {more} more" if more > 0 else "")


def peak_gib() -> float:
    """The most memory needed: GiB of the GPU since its last reset; on a CPU, of this process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # it counts KiB


def lost_process(error: BaseException) -> str | None:
    """One line for an error that comes from another process: a rank that is gone, or one that loaded data.

    Returns:
        What happened, where its cause is written, and how to go on; None for any other error.
    """
    if worker := _WORKER.match(str(error)):
        return (
            f"a process that loads data {worker['how'].strip()}: usually the machine's memory or /dev/shm was full. "
            "Lower num_workers, or leave the process more memory. The last checkpoint is as it was; go on with: "
            f"{command_to_go_on()}"
        )
    gloo = _GLOO.search(str(error))
    if not gloo and not isinstance(error, dist.DistError):
        return None
    reason = " ".join((gloo["reason"] if gloo else str(error)).split())[:200]
    return (
        f"another process of this run has ended or can't be reached ({reason}). Its own output, here or on its node, "
        "says why. The last checkpoint is as it was; start every node again with --resume, this one with: "
        f"{command_to_go_on()}"
    )
