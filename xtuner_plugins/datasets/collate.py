"""Samples become a batch."""

from collections.abc import Sequence

import torch
from mmengine.registry import FUNCTIONS

from ..hub.constants import IGNORE_INDEX
from .left_out import filler_sample


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
        datasets: list of the names of their files, '' for a sample without.
        loss_weights, dropped: where needed (see `with_images`).
    """
    kept = kept_samples(samples)
    length = max(len(sample["input_ids"]) for sample in kept)
    shape = (len(kept), -(-length // pad_to_multiple_of) * pad_to_multiple_of)
    batch = {
        "input_ids": torch.full(shape, pad_token_id, dtype=torch.int64),
        "labels": torch.full(shape, IGNORE_INDEX, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.bool),
    }
    for row, sample in enumerate(kept):
        for name, values in batch.items():
            values[row, : len(sample["input_ids"])] = sample.get(name, True)
    return with_images(batch, samples, kept)


@FUNCTIONS.register_module()
def collate_packed(samples: Sequence[dict], pad_token_id: int = 0, pad_to: int = 0) -> dict:
    """Concatenate samples into one row; their boundaries are in fields of their own.

        input_ids     a a a a b b b c c | .
        position_ids  0 1 2 3 0 1 2 0 1 | 0
        cu_seqlens    0       4     7   9 10

    Args:
        samples: the samples of a pack.
        pad_token_id: fills the rest.
        pad_to: fill up to this length with one segment of padding (0: none). A longer pack stays as it is.

    Returns:
        dict with
        input_ids, labels: int64 `[1, S]`; a segment's first label is -100, since nothing predicts it.
        attention_mask: bool `[1, S]`, False at padding.
        position_ids: int64 `[1, S]`, from 0 in each sample.
        cu_seqlens: int32 `[n + 1]`, boundaries of the segments, padding included.
        max_seqlen: int, the longest segment.
        tiles, num_tiles `[samples]`, sources, datasets: as `collate`, one entry per sample.
    """
    kept = kept_samples(samples)
    lengths = [len(sample["input_ids"]) for sample in kept]
    padding = max(0, pad_to - sum(lengths))
    pad = torch.full((padding,), pad_token_id, dtype=torch.int64)
    input_ids = torch.cat([sample["input_ids"] for sample in kept] + [pad])
    labels = torch.cat([sample["labels"] for sample in kept] + [torch.full_like(pad, IGNORE_INDEX)])
    attention_mask = torch.ones(len(input_ids), dtype=torch.bool)
    attention_mask[len(input_ids) - padding :] = False
    segments = lengths + ([padding] if padding else [])
    cu_seqlens = torch.tensor([0, *segments]).cumsum(0)
    labels[cu_seqlens[:-1]] = IGNORE_INDEX
    batch = {
        "input_ids": input_ids[None],
        "labels": labels[None],
        "attention_mask": attention_mask[None],
        "position_ids": torch.cat([torch.arange(length) for length in segments])[None],
        "cu_seqlens": cu_seqlens.to(torch.int32),
        "max_seqlen": max(segments),
    }
    return with_images(batch, samples, kept)


def kept_samples(samples: Sequence[dict]) -> list[dict]:
    """The samples that are trained on; where none is left, a filler that teaches nothing."""
    assert samples, "a batch has at least one sample"
    kept = [sample for sample in samples if "dropped" not in sample]
    return kept or [filler_sample(samples[0]["tiles"].shape[-1])]


def with_images(batch: dict, samples: Sequence[dict], kept: list[dict]) -> dict:
    """Add what every batch has besides ids and labels.

    Only some batches have `loss_weights`, float32 `[samples]` (where one isn't 1), and `dropped` (the samples that were
    left out).
    """
    batch["tiles"] = torch.cat([sample["tiles"] for sample in kept])
    batch["num_tiles"] = torch.tensor([sample["num_tiles"] for sample in kept], dtype=torch.int64)
    batch["sources"] = [sample["source"] for sample in kept]
    batch["datasets"] = [sample.get("dataset", "") for sample in kept]
    weights = [sample.get("loss_weight", 1.0) for sample in kept]
    if any(weight != 1.0 for weight in weights):
        batch["loss_weights"] = torch.tensor(weights, dtype=torch.float32)
    dropped = [sample for sample in samples if "dropped" in sample]
    if dropped:
        batch["dropped"] = [{key: value for key, value in sample.items() if key != "tiles"} for sample in dropped]
    return batch
