"""The heaviest batch first: memory that runs out does so before the first step, not hours later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.logging import print_log
from torch.utils.data import DataLoader

from ..datasets.plan.heaviest import heaviest
from ..datasets.plan.lengths import DROPPED
from ..datasets.plan.plan import Plan
from ..planning.memory import GIB
from .out_of_memory import describe_batch
from .peak_memory import peak_gib
from .steps import rehearse_step


def heaviest_batch(loader: DataLoader, plan: Plan, epoch: int, position: int) -> dict[str, Any]:
    """The heaviest micro-batch that this rank still takes of an epoch, collated in this process.

    Lengths that no cache holds are measured now. The plan stays where it is.

    Raises:
        ValueError: A sampler that plans nothing, so that the batches of an epoch aren't known.
    """
    if not plan.is_seekable:
        raise ValueError(
            f"heaviest_first: the batches of {type(loader.sampler).__name__} aren't known in advance; use PlanSampler "
            "or PackBatchSampler, or set heaviest_first=False"
        )
    tokens, tiles, fates = loader.dataset.sizes()
    kept = fates < DROPPED
    chosen = heaviest(_batches_ahead(loader, plan, epoch, position), tokens * kept, tiles * kept)
    # One by one: threads that the dataset starts for a whole batch would be missing in the workers forked later.
    return loader.collate_fn([loader.dataset[index] for index in chosen])


def _batches_ahead(loader: DataLoader, plan: Plan, epoch: int, position: int) -> Sequence[Sequence[int]]:
    cell = plan.cell
    plan.seek(epoch, position, cell)
    batches = list(loader.batch_sampler)
    if not batches:  # resumed at the end of an epoch
        plan.seek(epoch + 1)
        batches = list(loader.batch_sampler)
    plan.seek(epoch, position, cell)
    return batches


def rehearse(model: Any, optim_wrapper: Any, batch: dict[str, Any]) -> None:
    """Trains on a batch without consequence, and prints what it took on the rank that needed most.

    Raises:
        OutOfMemory: The memory of this rank isn't enough.
        ValueError: An optimizer of DeepSpeed's whose gradients can't be thrown away.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    rehearse_step(model, optim_wrapper, batch)
    own = peak_gib(), describe_batch(batch)
    peaks = all_gather_object(own)
    if is_main_process():
        rank = int(np.argmax([peak for peak, _ in peaks]))
        peak, figures = peaks[rank]
        limit = f" of {torch.cuda.mem_get_info()[1] / GIB:.1f}" if torch.cuda.is_available() else ""
        print_log(
            f"heaviest batch first: {figures} fit, peak memory {peak:.2f}{limit} GiB (rank {rank} of "
            f"{get_world_size()}); its gradients are thrown away",
            "current",
        )
