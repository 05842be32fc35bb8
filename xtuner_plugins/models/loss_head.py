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
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.trainable_tokens import TrainableTokensLayer
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
        """Logits ``[..., V]`` of ``[..., D]``; with targets what `head_loss` returns."""
        if targets is None:
            return super().forward(hidden)
        assert self.bias is None, "the heads of our LLM families have no bias"
        return head_loss(hidden, self.weight, targets, weights)


class TrainedRows(TrainableTokensLayer):
    """PEFT's layer of single trained rows beside a frozen embedding or head, with their indices on the device.

    Attributes:
        indices: int64 ``[n]``, of the rows.
    """

    @classmethod
    def take_over(cls, model: nn.Module) -> None:
        """Makes all such layers of a model, which have one adapter, some of this class."""
        for layer in model.modules():
            if type(layer) is TrainableTokensLayer:
                (indices,) = layer.token_indices.values()
                layer.__class__ = cls
                layer.register_buffer("indices", torch.tensor(indices), persistent=False)

    def get_merged_weights(self, active_adapters: list[str]) -> torch.Tensor:
        """The whole matrix ``[V, D]`` with the trained rows in place."""
        weight = self.base_layer.weight
        for name in active_adapters:
            weight = weight.index_copy(0, self.indices, self.trainable_tokens_delta[name].to(weight.dtype))
        return weight

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """As PEFT's layer; of a head with targets as `LossHead`."""
        if targets is None:
            return super().forward(hidden)
        if self.disable_adapters:
            return head_loss(hidden, self.base_layer.weight, targets, weights)
        (name,) = self.active_adapters
        with torch.no_grad():
            table = self.get_merged_weights([name])
        return head_loss(hidden, self.trainable_tokens_delta[name], targets, weights, table, self.indices)


def head_loss(
    hidden: torch.Tensor,
    trained: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    table: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The loss of a head, computed in autocast's dtype where that is enabled.

    Args:
        hidden: ``[K, D]``.
        trained: What of the head may have a gradient: the whole matrix ``[V, D]``, or ``rows`` of it.
        targets: int64 ``[K]``.
        weights: float32 ``[K]``.
        table: The whole matrix where ``trained`` isn't.
        rows: int64 ``[n]``, the indices of ``trained`` in ``table``.

    Returns:
        The sum of weights times cross entropy, and the cross entropy of each target without gradient, float32 ``[K]``.
        Without weights the latter alone, with gradient.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if not torch.is_grad_enabled():
        hidden, trained = hidden.detach(), trained.detach()
    if weights is None:
        return _CrossEntropy.apply(hidden, trained, table, rows, targets, dtype)
    return _WeightedSum.apply(hidden, trained, table, rows, targets, weights, dtype)


class _WeightedSum(torch.autograd.Function):
    """The loss of `head_loss` with weights.

    The gradient of a chunk's logits is known as soon as the chunk's softmax is, so both gradients are made in the
    forward pass, one chunk after the other, and the backward pass scales them. Nothing is computed twice. They are not
    yet divided by the number of tokens, so that they keep their digits in half precision.
    """

    @staticmethod
    def forward(ctx: Any, hidden, trained, table, rows, targets, weights, dtype: torch.dtype) -> tuple:
        ctx.dtypes = hidden.dtype, trained.dtype
        wanted = ctx.needs_input_grad[:2]
        each, *gradients = _chunk_by_chunk(hidden, trained, table, rows, targets, weights.float(), dtype, wanted)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(each)
        return (each * weights).sum(), each

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple:
        scaled = (
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None, None


class _CrossEntropy(torch.autograd.Function):
    """The cross entropies of `head_loss` without weights: logits are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden, trained, table, rows, targets, dtype: torch.dtype) -> torch.Tensor:
        ctx.dtype = dtype
        ctx.save_for_backward(hidden, trained, table, rows, targets)
        return _chunk_by_chunk(hidden, trained, table, rows, targets, None, dtype, (False, False))[0]

    @staticmethod
    def backward(ctx: Any, weights: torch.Tensor) -> tuple:
        hidden, trained, *_ = inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        _, *gradients = _chunk_by_chunk(*inputs, weights, ctx.dtype, wanted)
        into = (hidden.dtype, trained.dtype)
        cast = (
            None if gradient is None else gradient.to(dtype) for gradient, dtype in zip(gradients, into, strict=True)
        )
        return *cast, None, None, None, None


def _chunk_by_chunk(
    hidden: torch.Tensor,
    trained: torch.Tensor,
    table: torch.Tensor | None,
    rows: torch.Tensor | None,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    dtype: torch.dtype,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The cross entropy of each target, and gradients of their sum with weights.

    Args:
        hidden, trained, targets, weights, table, rows: As `head_loss`.
        dtype: Of products.
        wanted: Whether there are gradients of ``hidden`` and of ``trained``.

    Returns:
        float32 ``[K]``; the gradients, of ``hidden`` in ``dtype``, of ``trained`` in float32.
    """
    hidden, table = hidden.to(dtype), (trained if table is None else table).to(dtype)
    hidden_gradient = torch.empty_like(hidden) if wanted[0] else None
    trained_gradient = torch.zeros_like(trained, dtype=torch.float32) if wanted[1] else None
    words, parts = len(table), []
    size, width = chunk_shape(words, hidden.device)
    buffer = hidden.new_empty(min(size, len(hidden)), width)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            padded = buffer[: len(hidden[part])]
            logits = padded[:, :words]
            padded[:, words:].fill_(-math.inf)
            torch.mm(hidden[part], table.T, out=logits)
            parts.append(_softmax(padded, targets[part], None if weights is None else weights[part]))
            if wanted[0]:
                torch.mm(logits, table, out=hidden_gradient[part])
            if wanted[1]:
                of_rows = logits.T if rows is None else logits.T.index_select(0, rows)
                _add_product(trained_gradient, of_rows, hidden[part])
    return torch.cat(parts), hidden_gradient, trained_gradient


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
    """The cross entropies of logits; with weights the gradient of their weighted sum takes the logits' place.

    Args:
        logits: ``[K, V]``.
        targets: int64 ``[K]``.
        weights: float32 ``[K]``.
    """
    rows = softmax_rows(logits.shape[1])
    weights = [None] * len(targets) if weights is None else weights.split(rows)
    return torch.cat(list(map(_softmax_at_once, logits.split(rows), targets.split(rows), weights)))


def _softmax_at_once(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    log_probabilities = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    losses = -log_probabilities.gather(1, targets[:, None])[:, 0]
    if weights is not None:
        gradient = log_probabilities.exp_()
        gradient.scatter_add_(1, targets[:, None], -torch.ones_like(gradient[:, :1]))
        logits.copy_(gradient.mul_(weights[:, None]))
    return losses


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds ``left @ right`` to a float32 total; on CUDA without a rounded product in between."""
    if total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
