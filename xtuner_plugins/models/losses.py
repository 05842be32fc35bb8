"""Cross entropy over supervised tokens, normalized over all micro-batches and ranks of an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.integrations import is_deepspeed_zero3_enabled

from ..hub.constants import IGNORE_INDEX

# Logits that exist at a time: 128 MiB in float32, 221 positions of a vocabulary of 151,674 tokens.
CHUNK_LOGITS = 2**25


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
        mean_weight: Supervised weight of the optimizer step per rank, over all its micro-batches (float32 scalar); if
            None, this batch is the whole step and its weight is summed over ranks here.

    Returns:
        The loss to differentiate, a float32 scalar; and the cross entropy of each target, float32 ``[K]``, without
        weights and without gradient.
    """
    if weights is None:
        weights = torch.ones_like(targets, dtype=torch.float32)
    if mean_weight is None:
        mean_weight = sum_over_ranks(weights.sum()) / get_world_size()
    total, each = _loss_sum(hidden, targets, lm_head, weights)
    return total / torch.where(mean_weight > 0, mean_weight, 1.0), each  # if all weights are zero, so is the sum


def _loss_sum(
    hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(head, LossHead):
        return head(hidden, targets, weights)

    def chunk_loss(hidden, targets, weights):
        each = F.cross_entropy(head(hidden).float(), targets, reduction="none")
        return (each * weights).sum(), each.detach()

    # ZeRO-3 would gather the head again for each chunk, and can't recompute it.
    if is_deepspeed_zero3_enabled():
        return chunk_loss(hidden, targets, weights)
    rows = max(1, CHUNK_LOGITS // _vocabulary(head))
    chunks = zip(*(tensor.split(rows) for tensor in (hidden, targets, weights)), strict=True)
    totals, parts = zip(*(checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks), strict=True)
    return sum(totals), torch.cat(parts)


def token_log_probs(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Log probability of each target, float32 ``[K]``, with gradient; a bounded number of logits at a time.

    Args:
        hidden: ``[K, D]``, the LLM's last hidden states before each target; K > 0.
        targets: int64 ``[K]``.
        head: Maps ``[..., D]`` to ``[..., V]``.
    """

    def of_chunk(hidden, targets):
        return -F.cross_entropy(head(hidden).float(), targets, reduction="none")

    if is_deepspeed_zero3_enabled():  # as in `_loss_sum`
        return of_chunk(hidden, targets)
    rows = max(1, CHUNK_LOGITS // _vocabulary(head))
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks])


def _vocabulary(head: nn.Module) -> int:
    return next(module.out_features for module in head.modules() if hasattr(module, "out_features"))


class LossHead(nn.Linear):
    """An output head that computes a loss without keeping logits, beside what it does already."""

    @classmethod
    def take_over(cls, head: nn.Module) -> None:
        """Makes a plain linear head one of this class. Any other head (with adapters) stays what it is."""
        if type(head) is nn.Linear:
            head.__class__ = cls

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[..., V]`` of ``[..., D]``; with targets ``[K]`` and weights ``[K]`` as `_LinearCrossEntropy`."""
        if targets is None:
            return super().forward(hidden)
        assert self.bias is None, "the heads of our LLM families have no bias"
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        inputs = (hidden, self.weight) if torch.is_grad_enabled() else (hidden.detach(), self.weight.detach())
        return _LinearCrossEntropy.apply(*inputs, targets, weights, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of weights times cross entropy of ``hidden @ weight.T``, and the cross entropy of each target.

    The gradient of a chunk's logits is known as soon as the chunk's softmax is, so both gradients are made in the
    forward pass, one chunk after the other, and the backward pass scales them. Nothing is computed twice. They are not
    yet divided by the number of tokens, so that they keep their digits in half precision.
    """

    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, token_weights, dtype: torch.dtype) -> tuple:
        ctx.dtypes = hidden.dtype, weight.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        each = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        rows = max(1, CHUNK_LOGITS // weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                each[part], gradient = _chunk(
                    hidden[part] @ weight.T, targets[part, None], token_weights[part, None].float()
                )
                if wants_hidden:
                    torch.mm(gradient, weight, out=hidden_gradient[part])
                if wants_weight:
                    weight_gradient += gradient.T @ hidden[part]
                del gradient  # before the next chunk's logits
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(each)
        return (each * token_weights).sum(), each

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple:
        scaled = (
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None


def _chunk(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of logits, float32 ``[K]``, and the gradient of their weighted sum in the logits' dtype.

    Args:
        logits: ``[K, V]``.
        targets: int64 ``[K, 1]``.
        weights: float32 ``[K, 1]``.
    """
    log_probabilities = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    losses = -log_probabilities.gather(1, targets)[:, 0]
    gradient = log_probabilities.exp_()
    gradient.scatter_add_(1, targets, -torch.ones_like(weights))
    return losses, gradient.mul_(weights).to(logits.dtype)
