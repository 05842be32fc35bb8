"""Batches: padding, borders of packs, and samples that are left out."""

import torch
from mmengine.runner import Runner

from xtuner_plugins.datasets import collate, collate_packed
from xtuner_plugins.datasets.left_out import FILLER, FILLER_INDEX


def test_a_packed_batch_through_mmengine(planned_dataset):
    """As a config names everything by strings, in a worker process."""
    packs, seen = dict(type="PackBatchSampler", max_tokens=600), 0
    loader = dict(sampler=dict(type="PlanSampler"), batch_sampler=packs, batch_size=1, num_workers=1)
    loader |= dict(dataset=planned_dataset, collate_fn=dict(type="collate_packed"))
    for batch in Runner.build_dataloader(loader, seed=1):
        total, borders = batch["input_ids"].shape[1], batch["cu_seqlens"].tolist()
        assert batch["cu_seqlens"].dtype == torch.int32 and borders[0] == 0 and borders[-1] == total <= 600
        assert batch["position_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (1, total)
        lengths = batch["cu_seqlens"].diff().tolist()
        assert batch["position_ids"][0].tolist() == [place for length in lengths for place in range(length)]
        assert (batch["labels"][0, borders[:-1]] == -100).all() and batch["max_seqlen"] == max(lengths)
        assert len(batch["num_tiles"]) == len(lengths) and batch["num_tiles"].sum() == len(batch["tiles"])
        seen += len(batch["sources"])
    assert seen == 37


def test_rows_and_packs_hold_their_samples_unchanged(planned_dataset):
    samples = [planned_dataset[0], planned_dataset[30], planned_dataset[1]]
    packed = collate_packed(samples, pad_token_id=7, pad_to=500)
    padded = collate(samples, pad_token_id=7, pad_to_multiple_of=64)
    assert packed["input_ids"].shape == (1, 500) and padded["input_ids"].shape[1] % 64 == 0
    borders = packed["cu_seqlens"].tolist()
    assert borders[-1] == 500 and len(borders) == 5
    for row, sample in enumerate(samples):
        first, last, length = borders[row], borders[row + 1], len(sample["input_ids"])
        assert torch.equal(packed["input_ids"][0, first:last], sample["input_ids"])
        assert torch.equal(packed["labels"][0, first + 1 : last], sample["labels"][1:])
        for name, filling in (("attention_mask", False), ("input_ids", 7), ("labels", -100)):
            assert torch.equal(padded[name][row, :length], sample.get(name, torch.ones(length, dtype=torch.bool)))
            assert (padded[name][row, length:] == filling).all() and (packed[name][0, borders[3] :] == filling).all()


def test_left_out_samples_never_reach_the_model(planned_dataset):
    batch = collate([planned_dataset[0], planned_dataset[38], planned_dataset[39]])
    assert len(batch["input_ids"]) == 1 and len(batch["dropped"]) == 2
    for index in (38, FILLER_INDEX):
        nothing = collate([planned_dataset[index]])
        assert nothing["sources"] == [FILLER] and (nothing["labels"] == -100).all() and not len(nothing["tiles"])
