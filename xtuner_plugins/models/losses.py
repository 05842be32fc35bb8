"""Cross entropy over supervised tokens, normalised over every rank of the step."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

IGNORE_INDEX = -100


def world_size() -> int:
    """Processes that train together; 1 where no process group exists."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of a detached scalar over all ranks, as a new tensor."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def next_token_loss(
    hidden: torch.Tensor, labels: torch.Tensor, lm_head: nn.Module, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Next-token cross entropy with logits only where a label needs them.

    The logits of a 150k-word vocabulary dominate memory; most positions (images, questions, padding) carry no label,
    so the head runs on the supervised positions alone::

        position   0      1     2     3     4
        label     -100   -100   a     b    -100
        head runs         x     x                 (the position before each label)

    The local sum is divided by the mean number of supervised tokens a rank, so that the average of gradients that
    DDP and ZeRO take is exactly the gradient of the mean over all supervised tokens of the step: the result doesn't
    depend on how samples are dealt to ranks. A rank without any label still runs the head once, times zero, because
    under ZeRO-3 every rank must gather the same parameters.

    Args:
        hidden: ``[B, S, D]``, the LLM's last hidden states.
        labels: int64 ``[B, S]``, -100 where nothing is supervised.
        lm_head: Maps ``[K, D]`` to ``[K, V]``.
        weights: float32 ``[B, S]``, how much the label at each position counts; None counts all alike. With weights
            the sum of weights takes the place of the number of tokens.

    Returns:
        The loss to differentiate (float32 scalar) and the number of supervised tokens of this rank.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX
    num_supervised = supervised.sum()
    token_weights = None if weights is None else weights[:, 1:][supervised]
    local_weight = num_supervised.float() if token_weights is None else token_weights.sum()
    mean_per_rank = sum_over_ranks(local_weight) / world_size()
    if num_supervised == 0:
        return lm_head(hidden[:1, :1]).float().sum() * 0.0, num_supervised
    logits = lm_head(hidden[:, :-1][supervised]).float()
    losses = F.cross_entropy(logits, targets[supervised], reduction="none")
    loss_sum = losses.sum() if token_weights is None else (losses * token_weights).sum()
    return loss_sum / mean_per_rank, num_supervised
