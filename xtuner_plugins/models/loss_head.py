"""Heads that compute a loss themselves: of all logits a bounded number exists at a time.

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
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..ranges import CHUNK_LOGITS, SOFTMAX_LOGITS

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

    The gradient of a chunk's logits is known as soon as the chunk's softmax is, so both gradients are made in the
    forward pass, one chunk after the other, and the backward pass scales them. Nothing is computed twice. They are not
    yet divided by the number of tokens, so that they keep their digits in half precision.
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
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The cross entropy of each target, float32 ``[K]``, and what gradients of their sum with weights are wanted.

    Products are made in ``dtype``, and so is the gradient of ``hidden``; that of ``weight`` is float32.
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
            if wanted[1]:
                _add_product(weight_gradient, logits.T, hidden[part])
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


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds ``left @ right`` to a float32 total; on CUDA without a rounded product in between."""
    if total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
