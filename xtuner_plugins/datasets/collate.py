"""Samples become a batch."""

from collections.abc import Sequence

import torch
from mmengine.registry import FUNCTIONS

from .conversation import IGNORE_INDEX


@FUNCTIONS.register_module()
def collate(samples: Sequence[dict], pad_token_id: int = 0, pad_to_multiple_of: int = 1) -> dict:
    """Pad samples to one length, on the right.

    Args:
        samples: what `MultimodalDataset` returns.
        pad_token_id: fills `input_ids` where `attention_mask` is False.
        pad_to_multiple_of: round the length up.

    Returns:
        dict with
        input_ids: int64 `[B, S]`.
        labels: int64 `[B, S]`, padded with -100.
        attention_mask: bool `[B, S]`, True at real tokens.
        tiles: uint8 `[T, 3, S, S]`, all samples' tiles in order; T may be 0.
        num_tiles: int64 `[B]`, tiles of each sample.
        sources: list of 'file:line'.
    """
    assert samples, "a batch has at least one sample"
    length = max(len(sample["input_ids"]) for sample in samples)
    length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
    shape = (len(samples), length)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        size = len(sample["input_ids"])
        input_ids[row, :size] = sample["input_ids"]
        labels[row, :size] = sample["labels"]
        attention_mask[row, :size] = True
    return {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": attention_mask,
        "tiles": torch.cat([sample["tiles"] for sample in samples]),
        "num_tiles": torch.tensor([len(sample["tiles"]) for sample in samples], dtype=torch.int64),
        "sources": [sample["source"] for sample in samples],
    }
