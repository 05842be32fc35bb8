"""Cross entropy over supervised tokens, normalized over all micro-batches and ranks of an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ..hub.constants import IGNORE_INDEX
from .attention import samples_of_positions


def world_size() -> int:
    """Processes that train together; 1 where no process group exists."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of a detached scalar over all ranks, as a new tensor."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def weights_of_positions(
    loss_weights: torch.Tensor | None, shape: tuple[int, int], cu_seqlens: torch.Tensor | None
) -> torch.Tensor | None:
    """How much the label at each position counts.

    Args:
        loss_weights: float32, one per sample; None counts all alike.
        shape: (B, S).
        cu_seqlens: int32 ``[n + 1]`` of a packed row, or None.

    Returns:
        float32 ``[B, S]``; None where all count alike.
    """
    if loss_weights is None:
        return None
    samples = samples_of_positions(shape, cu_seqlens, loss_weights.device)
    return loss_weights[samples.clamp(max=len(loss_weights) - 1)]  # padding behind a pack has no label to weigh


def batch_weight(batch: Mapping[str, torch.Tensor]) -> float:
    """The supervised weight of a collated batch: its number of labels, or the sum of their weights.

    Args:
        batch: ``labels``, and ``loss_weights`` and ``cu_seqlens`` where it has them; on the CPU, so that counting
            costs no synchronization with a device.
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

    The local sum is divided by the mean number of supervised tokens per rank, so that the average of gradients that
    DDP and ZeRO take is exactly the gradient of the mean over all supervised tokens of the step: the result doesn't
    depend on how samples are dealt to ranks and micro-batches. A rank without any label still runs the head once,
    times zero, because under ZeRO-3 every rank must gather the same parameters.

    Args:
        hidden: ``[B, S, D]``, the LLM's last hidden states.
        labels: int64 ``[B, S]``, -100 where nothing is supervised.
        lm_head: Maps ``[K, D]`` to ``[K, V]``.
        weights: float32 ``[B, S]``, how much the label at each position counts; None counts all alike. With weights
            the sum of weights takes the place of the number of tokens.
        mean_weight: Supervised weight of the optimizer step per rank, over all its micro-batches (float32 scalar); None
            takes this batch for the whole step and sums over ranks here.

    Returns:
        The loss to differentiate (float32 scalar) and the number of supervised tokens of this rank.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX
    num_supervised = supervised.sum()
    token_weights = None if weights is None else weights[:, 1:][supervised]
    if mean_weight is None:
        local_weight = num_supervised.float() if token_weights is None else token_weights.sum()
        mean_weight = sum_over_ranks(local_weight) / world_size()
    if num_supervised == 0:
        return lm_head(hidden[:1, :1]).float().sum() * 0.0, num_supervised
    logits = lm_head(hidden[:, :-1][supervised]).float()
    losses = F.cross_entropy(logits, targets[supervised], reduction="none")
    loss_sum = losses.sum() if token_weights is None else (losses * token_weights).sum()
    # Where no label counts at all the sum is zero, and stays so.
    return loss_sum / torch.where(mean_weight > 0, mean_weight, 1.0), num_supervised
