"""Cross entropy over supervised tokens, normalized over all micro-batches and ranks of an optimizer step.

Logits of a vocabulary of 150k words dominate memory, so they are made in chunks of rows, each in the same buffer. In
the chunk stand first logits, then their gradient::

                 V columns                 padding
    logits    [ l l l l l l l l l l l l | -inf -inf ]   hidden @ weight.T
    gradient  [ g g g g g g g g g g g g |   0    0  ]   softmax - onehot, times the weight of the row

On CUDA rows of the buffer, and rows per chunk, are multiples of `ALIGNMENT`, whatever the vocabulary: matrix products
in half precision need rows that begin at multiples of 16 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.integrations import is_deepspeed_zero3_enabled

from ..ranges import CHUNK_LOGITS, SOFTMAX_LOGITS
from .rows import make_row

ALIGNMENT = 64  # elements


class LossHead(nn.Linear):
    """An output head that computes losses without keeping logits, beside what it does already."""

    @classmethod
    def take_over(cls, head: nn.Module) -> None:
        """Makes a plain linear head one of this class. Any other head (with adapters) stays what it is."""
        if type(head) is nn.Linear:
            head.__class__ = cls

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits, or a loss, computed in autocast's dtype where that is enabled.

        Args:
            hidden: ``[..., D]``; with targets ``[K, D]``.
            targets: int64 ``[K]``.
            weights: float32 ``[K]``.

        Returns:
            Logits ``[..., V]``. With targets and weights the sum of weights times cross entropy, and the cross entropy
            of each target without gradient, float32 ``[K]``. With targets alone the latter, with gradient.
        """
        if targets is None:
            return super().forward(hidden)
        assert self.bias is None, "the heads of our LLM families have no bias"
        device, weight = hidden.device.type, self.weight
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        if not torch.is_grad_enabled():
            hidden, weight = hidden.detach(), weight.detach()
        if weights is None:
            return _CrossEntropy.apply(hidden, weight, targets, dtype)
        return _WeightedSum.apply(hidden, weight, targets, weights, dtype)


class _WeightedSum(torch.autograd.Function):
    """The loss of a `LossHead` with weights.

    The gradient of a chunk's logits is known as soon as its softmax is, so both gradients are made in the forward pass,
    and the backward pass scales them: nothing is computed twice. They aren't yet divided by the number of tokens, so
    that they keep their digits in half precision.
    """

    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, weights, dtype: torch.dtype) -> tuple:
        ctx.dtypes = hidden.dtype, weight.dtype
        each, *gradients = _chunk_by_chunk(hidden, weight, targets, weights.float(), dtype, ctx.needs_input_grad)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(each)
        return (each * weights).sum(), each

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple:
        gradients = (None if gradient is None else gradient.mul_(scale) for gradient in ctx.saved_tensors)
        return *_cast(gradients, ctx.dtypes), None, None, None


class _CrossEntropy(torch.autograd.Function):
    """The cross entropies of a `LossHead` without weights: logits are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, dtype: torch.dtype) -> torch.Tensor:
        ctx.dtype = dtype
        ctx.save_for_backward(hidden, weight, targets)
        return _chunk_by_chunk(hidden, weight, targets, None, dtype, (False, False))[0]

    @staticmethod
    def backward(ctx: Any, weights: torch.Tensor) -> tuple:
        hidden, weight, _ = ctx.saved_tensors
        _, *gradients = _chunk_by_chunk(*ctx.saved_tensors, weights, ctx.dtype, ctx.needs_input_grad)
        return *_cast(gradients, (hidden.dtype, weight.dtype)), None, None


def _cast(gradients: Iterable[torch.Tensor | None], dtypes: Sequence[torch.dtype]) -> list[torch.Tensor | None]:
    return [None if each is None else each.to(dtype) for each, dtype in zip(gradients, dtypes, strict=True)]


def _chunk_by_chunk(
    hidden, weight, targets, weights, dtype: torch.dtype, wanted: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The cross entropy of each target, float32 ``[K]``, and what gradients of their sum with weights are wanted.

    Products and the gradient of ``hidden`` are made in ``dtype``, that of ``weight`` in float32.
    """
    hidden_gradient = torch.empty_like(hidden, dtype=dtype) if wanted[0] else None
    weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    hidden, weight, words, parts = hidden.to(dtype), weight.to(dtype), len(weight), []
    size, width = chunk_shape(words, hidden.device)
    buffer = hidden.new_empty(min(size, len(hidden)), width)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            padded = buffer[: len(hidden[part])]
            logits = padded[:, :words]
            padded[:, words:].fill_(-math.inf)
            torch.mm(hidden[part], weight.T, out=logits)
            parts.append(_softmax(padded, targets[part], None if weights is None else weights[part]))
            if wanted[0]:
                torch.mm(logits, weight, out=hidden_gradient[part])
            if wanted[1] and weight_gradient.is_cuda:  # without a rounded product in between
                torch.addmm(weight_gradient, logits.T, hidden[part], out_dtype=torch.float32, out=weight_gradient)
            elif wanted[1]:
                weight_gradient += logits.T @ hidden[part]
    return torch.cat(parts), hidden_gradient, weight_gradient


def chunk_shape(words: int, device: torch.device) -> tuple[int, int]:
    """Rows of a chunk, and columns of its buffer, for logits of a vocabulary of so many words."""
    if device.type != "cuda":
        return softmax_rows(words), words
    width = -(-words // ALIGNMENT) * ALIGNMENT
    return max(1, CHUNK_LOGITS // width // ALIGNMENT) * ALIGNMENT, width


def softmax_rows(words: int) -> int:
    """Rows of logits in float32 that exist at a time."""
    return max(1, SOFTMAX_LOGITS // words)


def _softmax(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Cross entropies of logits ``[K, V]``; with weights the gradient of their weighted sum takes the logits' place."""
    rows, losses = softmax_rows(logits.shape[1]), []
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        wanted = targets[part, None]
        log_probabilities = F.log_softmax(logits[part], dim=-1, dtype=torch.float32)
        losses.append(-log_probabilities.gather(1, wanted)[:, 0])
        if weights is not None:
            log_probabilities.exp_().scatter_add_(1, wanted, -torch.ones_like(log_probabilities[:, :1]))
            logits[part].copy_(log_probabilities.mul_(weights[part, None]))
        del log_probabilities  # before the next ones are made
    return torch.cat(losses)


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, as a new tensor without gradient."""
    total = value.detach().clone()
    all_reduce(total)
    return total


def batch_weight(batch: Mapping[str, torch.Tensor]) -> float:
    """The supervised weight of a collated batch, on the CPU: its number of labels, or the sum of their weights.

    Args:
        batch: As for `make_row`; preference pairs have ``num_tiles``, too.
    """
    weights = batch.get("loss_weights")
    if weights is None:
        return float(supervised_per_sample(batch).sum())
    counts = supervised_per_sample(batch)[: len(weights)]  # behind them stands the padding of a pack
    return float(counts.double() @ weights.double())


def supervised_per_sample(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Labels of each sample that a token before them predicts, int64 ``[samples]``; a pack's padding is one more.

    A preference pair counts as one, however long its answers are. The batch is as for `make_row`.
    """
    if "follows" in batch:
        return torch.ones_like(batch["num_tiles"])
    row = make_row(batch, image_token=-1)
    return torch.bincount(row.owners, minlength=len(row.segments.bounds) - 1)


def mean_weight_of(weights: torch.Tensor, mean_weight: torch.Tensor | None) -> torch.Tensor:
    """What a sum over this batch is divided by: the step's mean weight per rank, a float32 scalar, 1 where that is 0.

    Without ``mean_weight`` the batch, with these float32 ``weights``, is the whole step.
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
    """Next-token cross entropy at the supervised positions alone, a bounded number of logits at a time (`LossHead`).

    The local sum is divided by the mean supervised weight per rank. As DDP and ZeRO average gradients over ranks, the
    result is exactly the gradient of the mean over all supervised tokens of the step, however samples are distributed
    over ranks and micro-batches.

    Args:
        hidden: ``[K, D]``, the last hidden states before each target; K > 0: under ZeRO-3 all ranks gather the head.
        targets: int64 ``[K]``.
        lm_head: Maps ``[..., D]`` to ``[..., V]``.
        weights: float32 ``[K]``; None weighs all the same.
        mean_weight: As `mean_weight_of`.

    Returns:
        The loss to differentiate, a float32 scalar; and the targets' cross entropy, float32 ``[K]``, without gradient.
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
    """Log probability of each target, float32 ``[K]``, with gradient; arguments and logits as of `next_token_loss`."""
    return -(head(hidden, targets) if isinstance(head, LossHead) else _recomputed(hidden, targets, head))


def _recomputed(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """The cross entropy of each target for a head with adapters, whose logits the backward pass computes again."""

    def of_chunk(hidden, targets):
        return F.cross_entropy(head(hidden).float(), targets, reduction="none")

    if is_deepspeed_zero3_enabled():  # it would gather the head again for each chunk, and can't recompute it
        return of_chunk(hidden, targets)
    rows = softmax_rows(next(module.out_features for module in head.modules() if hasattr(module, "out_features")))
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks])
