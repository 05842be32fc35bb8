"""Attention over a row of several samples: each token sees the earlier tokens of its own sample, nothing else.

Several answers may follow one prompt (`Branches`): each sees the prompt and itself, none sees another::

    prompt p p p p | chosen c c c | rejected r r

No mask of the whole row is built. Keys and values of grouped heads are repeated on CUDA devices without flash attention
alone. Registered with transformers under `SEGMENTS`, so that every LLM family takes it.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .sequence_parallel import heads_to_tokens, tokens_to_heads

SEGMENTS = "segments"  # attn_implementation: by segments where the LLM's forward gets ``segments``, else as ``sdpa``
_FLASH_CAPABILITY = (8, 0)  # Ampere
_FLASH_HEAD_DIM = 256
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}  # newer PyTorch


class Segments(NamedTuple):
    """Where the samples of a row stand."""

    bounds: tuple[int, ...]  # the start of each sample, and the end of the last: n + 1, from 0 to the row's length
    cu_seqlens: torch.Tensor  # the same as int32 ``[n + 1]`` on the row's device
    branches: Branches | None = None  # where some segments continue others; None where each stands alone
    group: dist.ProcessGroup | None = None  # ranks that hold a cut of the row each; None where one rank has it whole

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(end - start for start, end in pairwise(self.bounds))


class Branches(NamedTuple):
    """Which segments of a row follow an earlier one and see it whole."""

    follows: tuple[int, ...]  # for each segment the index of the earlier one that it follows, or -1
    key_positions: torch.Tensor  # int64 ``[K]``, the positions that they see, segment after segment, on the device
    keys: Segments  # where each segment begins in ``key_positions``


class Opaque:
    """Segments, hidden from the compiler, which would compile a block again for every other length of their tuples."""

    def __init__(self, segments: Segments):
        self.segments = segments


def branch_off(bounds: tuple[int, ...], follows: tuple[int, ...]) -> Branches:
    """The branches of a row, on the CPU, from ``bounds`` of `Segments` and ``follows`` of `Branches`.

    Raises:
        ValueError: A segment follows a later one, itself, or one that follows another.
    """
    spans = [torch.arange(start, end) for start, end in pairwise(bounds)]
    seen = []
    for index, (span, prompt) in enumerate(zip(spans, follows, strict=True)):
        if prompt >= index or (prompt >= 0 and follows[prompt] >= 0):
            raise ValueError(
                f"segment {index} follows segment {prompt}: it can follow an earlier one that follows no other"
            )
        seen.append(torch.cat([spans[prompt], span]) if prompt >= 0 else span)
    cu_seqlens = torch.tensor([0, *map(len, seen)]).cumsum(0).int()
    return Branches(tuple(follows), torch.cat(seen), Segments(tuple(cu_seqlens.tolist()), cu_seqlens))


def no_mask(device: torch.device) -> torch.Tensor:
    """The ``attention_mask`` of a forward with ``segments``: beside four dimensions transformers makes no mask."""
    return torch.empty(1, 1, 1, 1, device=device)


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | Opaque | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each segment, and to the one that it follows, as an attention function of transformers.

    Args:
        module: the attention layer.
        query: ``[1, H, S, D]``; S are the tokens of this rank's cut where segments have a group.
        key, value: ``[1, H_kv, S, D]``; H is a multiple of H_kv.
        attention_mask: unused where there are segments.
        dropout, scaling: of attention weights, and of scores (None is 1 / sqrt(D)).
        segments: of the row; None attends as ``sdpa``.
        sliding_window: a token sees itself and this many minus one before it; None sees all.
        **kwargs: what transformers passes, too; unused where there are segments.

    Returns:
        ``[1, S, H, D]``, and None in place of the weights.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    segments = segments.segments if isinstance(segments, Opaque) else segments
    query, key, value = tokens_to_heads(segments.group, *_in_computing_dtype(query, key, value))
    keys = segments
    if segments.branches is not None:
        keys = segments.branches.keys
        key, value = (state[:, :, segments.branches.key_positions] for state in (key, value))
    window = sliding_window if sliding_window is not None and sliding_window < keys.longest else None
    if _flash_runs(query, dropout):
        rows = (state[0].transpose(0, 1) for state in (query, key, value))
        borders = (segments.cu_seqlens, keys.cu_seqlens, segments.longest, keys.longest)
        options = dict(scale=scaling, window_size=(-1 if window is None else window - 1, 0), **_GROUPED)
        output = varlen_attn(*rows, *borders, **options)
        return heads_to_tokens(output[None], segments.group), None
    pieces = []
    for (start, end), (first, last) in zip(pairwise(segments.bounds), pairwise(keys.bounds), strict=True):
        states = query[:, :, start:end], key[:, :, first:last], value[:, :, first:last]
        pieces.append(_one_segment(*states, dropout, scaling, window))
    return heads_to_tokens(torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), segments.group), None


def _in_computing_dtype(*states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Casts states as autocast casts the inputs of PyTorch's attention; it doesn't know the varlen kernel.

    Rotations of float32 embeddings and norms with float32 weights leave queries and keys in float32.
    """
    device = states[0].device.type
    if not torch.is_autocast_enabled(device):
        return states
    return tuple(state.to(torch.get_autocast_dtype(device)) for state in states)


def _flash_runs(query: torch.Tensor, dropout: float) -> bool:
    """Whether the flash kernel of torch computes this: half precision, Ampere or newer, no dropout."""
    if not query.is_cuda or query.dtype == torch.float32 or dropout:
        return False
    fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= _FLASH_HEAD_DIM
    return fits and torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY


def _one_segment(query, key, value, dropout: float, scaling: float | None, window: int | None) -> torch.Tensor:
    length, before = query.shape[2], key.shape[2] - query.shape[2]
    near = None
    if before or (window is not None and window < length):
        near = torch.ones(length, before + length, dtype=torch.bool, device=query.device).tril(before)
        if window is not None:
            near = near.triu(before + 1 - window)
    groups = query.shape[1] // key.shape[1]
    if query.is_cuda and groups > 1:
        # Without flash attention grouped heads would take the kernel that keeps all scores. The CPU's kernel takes them
        # as they are, with the same result to the bit.
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    options = dict(dropout_p=dropout, is_causal=near is None, scale=scaling, enable_gqa=groups > 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=near, **options)


def keep_out_of_graphs() -> None:
    """Makes `torch.compile` leave attention over segments alone: a graph would hold where one batch's samples begin."""
    # Not above the function: naming the compiler imports it, which takes a second.
    ALL_ATTENTION_FUNCTIONS.register(SEGMENTS, torch.compiler.disable(segment_attention))


ALL_ATTENTION_FUNCTIONS.register(SEGMENTS, segment_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(SEGMENTS, sdpa_mask)
