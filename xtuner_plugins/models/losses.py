"""Cross entropy over supervised tokens, normalized over all micro-batches and ranks of an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.integrations import is_deepspeed_zero3_enabled

from ..hub.constants import IGNORE_INDEX
from .loss_head import LossHead, softmax_rows


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, as a new tensor without gradient."""
    total = value.detach().clone()
    all_reduce(total)
    return total


def batch_weight(batch: Mapping[str, torch.Tensor]) -> float:
    """The supervised weight of a collated batch: its number of labels, or the sum of their weights.

    Args:
        batch: ``labels``, and optionally ``loss_weights`` and ``cu_seqlens``; or preference pairs (``follows`` and
            ``num_tiles``). On the CPU, so that counting needs no synchronization with a device.
    """
    weights = batch.get("loss_weights")
    if weights is None:
        return float(supervised_per_sample(batch).sum())
    counts = supervised_per_sample(batch)[: len(weights)]  # behind them stands the padding of a pack
    return float(counts.double() @ weights.double())


def supervised_per_sample(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Labels of each sample that a token before them predicts, int64 ``[samples]``; a pack's padding is one more.

    A preference pair counts as one, however long its answers are.

    Args:
        batch: As `batch_weight`.
    """
    if "follows" in batch:
        return torch.ones_like(batch["num_tiles"])
    supervised = batch["labels"][:, 1:] != IGNORE_INDEX
    if "cu_seqlens" not in batch:
        return supervised.sum(1)
    ends = batch["cu_seqlens"][1:]
    sample = torch.bucketize(supervised[0].nonzero().flatten() + 1, ends, right=True)
    return torch.bincount(sample, minlength=len(ends))


def mean_weight_of(weights: torch.Tensor, mean_weight: torch.Tensor | None) -> torch.Tensor:
    """What a sum over this batch is divided by: the step's mean weight per rank, 1 where that is 0.

    Args:
        weights: float32, of the batch, which is the whole step if ``mean_weight`` is None.
        mean_weight: Of all micro-batches of the step, a float32 scalar.
    """
    if mean_weight is None:
        mean_weight = sum_over_ranks(weights.sum()) / get_world_size()
    return torch.where(mean_weight > 0, mean_weight, 1.0)  # if all weights are zero, so is the sum


def next_token_loss(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    lm_head: nn.Module,
    weights: torch.Tensor | None = None,
    mean_weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Next-token cross entropy at the supervised positions, a bounded number of logits at a time.

    The logits of a 150k-word vocabulary dominate memory. Most positions (images, questions) carry no label, so the head
    runs at the others alone, and there in chunks (`LossHead`).

    The local sum is divided by the mean supervised weight per rank. As DDP and ZeRO average gradients over ranks, the
    result is exactly the gradient of the mean over all supervised tokens of the step, however samples are distributed
    over ranks and micro-batches.

    Args:
        hidden: ``[K, D]``, the LLM's last hidden states before each target; K > 0, because under ZeRO-3 every rank must
            gather the head.
        targets: int64 ``[K]``.
        lm_head: Maps ``[..., D]`` to ``[..., V]``.
        weights: float32 ``[K]``; None weighs all the same.
        mean_weight: As `mean_weight_of`.

    Returns:
        The loss to differentiate, a float32 scalar; and the cross entropy of each target, float32 ``[K]``, without
        weights and without gradient.
    """
    if weights is None:
        weights = torch.ones_like(targets, dtype=torch.float32)
    if isinstance(lm_head, LossHead):
        total, each = lm_head(hidden, targets, weights)
    else:
        each = _recomputed(hidden, targets, lm_head)
        total, each = (each * weights).sum(), each.detach()
    return total / mean_weight_of(weights, mean_weight), each


def token_log_probs(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Log probability of each target, float32 ``[K]``, with gradient; a bounded number of logits at a time.

    Args:
        hidden: ``[K, D]``, the LLM's last hidden states before each target; K > 0.
        targets: int64 ``[K]``.
        head: Maps ``[..., D]`` to ``[..., V]``.
    """
    return -(head(hidden, targets) if isinstance(head, LossHead) else _recomputed(hidden, targets, head))


def _recomputed(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """The cross entropy of each target for a head with adapters, whose logits the backward pass computes again."""

    def of_chunk(hidden, targets):
        return F.cross_entropy(head(hidden).float(), targets, reduction="none")

    if is_deepspeed_zero3_enabled():  # it would gather the head again for each chunk, and can't recompute it
        return of_chunk(hidden, targets)
    words = next(module.out_features for module in head.modules() if hasattr(module, "out_features"))
    rows = softmax_rows(words)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks])
