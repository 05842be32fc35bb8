"""Cross entropy over supervised tokens, normalized over all micro-batches and ranks of an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import nn

from ..hub.constants import IGNORE_INDEX
from .attention import samples_of_positions


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, as a new tensor without gradient."""
    total = value.detach().clone()
    all_reduce(total)
    return total


def weights_of_positions(
    loss_weights: torch.Tensor | None, shape: tuple[int, int], cu_seqlens: torch.Tensor | None
) -> torch.Tensor | None:
    """The weight of the label at each position.

    Args:
        loss_weights: float32, one per sample; None gives all the same weight.
        shape: (B, S).
        cu_seqlens: int32 ``[n + 1]`` of a packed row, or None.

    Returns:
        float32 ``[B, S]``; None if all have the same weight.
    """
    if loss_weights is None:
        return None
    samples = samples_of_positions(shape, cu_seqlens, loss_weights.device)
    return loss_weights[samples.clamp(max=len(loss_weights) - 1)]  # padding after a pack has no label


def batch_weight(batch: Mapping[str, torch.Tensor]) -> float:
    """The supervised weight of a collated batch: its number of labels, or the sum of their weights.

    Args:
        batch: ``labels``, and optionally ``loss_weights`` and ``cu_seqlens``; on the CPU, so that counting needs no
            synchronization with a device.
    """
    supervised = batch["labels"][:, 1:] != IGNORE_INDEX
    weights = weights_of_positions(batch.get("loss_weights"), batch["labels"].shape, batch.get("cu_seqlens"))
    return float(supervised.sum() if weights is None else weights[:, 1:][supervised].double().sum())


def next_token_loss(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    lm_head: nn.Module,
    weights: torch.Tensor | None = None,
    mean_weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Next-token cross entropy with logits only where a label needs them.

    The logits of a 150k-word vocabulary dominate memory; most positions (images, questions, padding) carry no label,
    so the head runs on the supervised positions alone::

        position   0      1     2     3     4
        label     -100   -100   a     b    -100
        head runs         x     x                 (the position before each label)

    The local sum is divided by the mean number of supervised tokens per rank. As DDP and ZeRO average gradients over
    ranks, the result is exactly the gradient of the mean over all supervised tokens of the step, however samples are
    distributed over ranks and micro-batches. A rank without labels still runs the head once, times zero, because under
    ZeRO-3 every rank must gather the same parameters.

    Args:
        hidden: ``[B, S, D]``, the LLM's last hidden states.
        labels: int64 ``[B, S]``, -100 where nothing is supervised.
        lm_head: Maps ``[K, D]`` to ``[K, V]``.
        weights: float32 ``[B, S]``, the weight of the label at each position; None weighs all the same. With weights
            the loss is divided by their sum in place of the number of tokens.
        mean_weight: Supervised weight of the optimizer step per rank, over all its micro-batches (float32 scalar); if
            None, this batch is the whole step and its weight is summed over ranks here.

    Returns:
        The loss to differentiate (float32 scalar) and the number of supervised tokens of this rank.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX
    num_supervised = supervised.sum()
    token_weights = None if weights is None else weights[:, 1:][supervised]
    if mean_weight is None:
        local_weight = num_supervised.float() if token_weights is None else token_weights.sum()
        mean_weight = sum_over_ranks(local_weight) / get_world_size()
    if num_supervised == 0:
        return lm_head(hidden[:1, :1]).float().sum() * 0.0, num_supervised
    logits = lm_head(hidden[:, :-1][supervised]).float()
    losses = F.cross_entropy(logits, targets[supervised], reduction="none")
    loss_sum = losses.sum() if token_weights is None else (losses * token_weights).sum()
    # If all weights are zero, so is the sum.
    return loss_sum / torch.where(mean_weight > 0, mean_weight, 1.0), num_supervised
