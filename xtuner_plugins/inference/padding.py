"""Masks of padded batches by a comparison.

For every generated token, transformers builds the mask of a batch with padding by tracing a Python function once for
each pair of positions (`vmap`). That takes longer than the token itself where the model is small or the processor slow.
Causal attention over rows that are padded on one side needs two comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PADDED = "sdpa_padded"  # attn_implementation


@contextmanager
def quick_masks(language_model: nn.Module) -> Iterator[None]:
    """Inside, a language model that attends by ``sdpa`` makes its masks by `padded_mask`; others are left alone.

    Args:
        language_model: A model of transformers.
    """
    config = language_model.config
    if config._attn_implementation != "sdpa":
        yield
        return
    config._attn_implementation = PADDED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def padded_mask(
    batch_size: int,
    cache_position: torch.Tensor,
    kv_length: int,
    kv_offset: int = 0,
    mask_function=causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **options,
) -> torch.Tensor | None:
    """The mask that `sdpa_mask` makes, by the rules of transformers' mask functions.

    Args:
        batch_size: B.
        cache_position: int64 ``[Q]``, the positions of the queries.
        kv_length: K, the number of keys.
        kv_offset: Position of the first key.
        mask_function: Which pairs may attend; other than causal ones are left to `sdpa_mask`.
        attention_mask: bool ``[B, K]``, False where there is padding.
        **options: Of `sdpa_mask`.

    Returns:
        bool ``[B, 1, Q, K]``, True where a query sees a key; None where no mask is needed.
    """
    given = (batch_size, cache_position, kv_length, kv_offset, mask_function, attention_mask)
    is_padded = attention_mask is not None and attention_mask.shape == (batch_size, kv_length)
    if mask_function is not causal_mask_function or kv_offset or not is_padded or attention_mask.all():
        return sdpa_mask(*given, **options)
    seen = torch.arange(kv_length, device=cache_position.device) <= cache_position[:, None]
    return seen & attention_mask[:, None, None, :]


ALL_ATTENTION_FUNCTIONS.register(PADDED, sdpa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(PADDED, padded_mask)
