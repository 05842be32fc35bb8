"""What is shown of a batch is what the batch holds."""

import torch

from xtuner_plugins.audit.show_batch import describe_batch, draw, split_batch
from xtuner_plugins.datasets import MultimodalDataset, PreferenceDataset, collate, collate_packed
from xtuner_plugins.datasets.left_out import FILLER, FILLER_INDEX
from xtuner_plugins.datasets.preference import collate_pairs


def test_the_samples_of_a_batch_and_their_page(data_base, write_data, make_image, qa):
    records = [qa("Where?", "There <b>it</b> is.", image="b.png"), qa("What is it?", "No."), qa(image="none.png")]
    settings = {"dataset_settings": [{"loss_weight": 2}], "on_bad_sample": "skip"}
    dataset = MultimodalDataset(str(data_base), [write_data(records)], make_image("b.png", 360, 120), **settings)
    samples = [dataset[index] for index in range(3)]
    length = len(samples[0]["input_ids"])
    packed = collate_packed(samples, pad_to=150)
    for batch, places in ((collate(samples), [(0, 0), (1, 0)]), (packed, [(0, 0), (0, length)])):
        parts = split_batch(batch)
        assert [(part.row, part.first) for part in parts] == places and [part.weight for part in parts] == [2, 2]
        for part, sample in zip(parts, samples[:2], strict=True):
            assert part.ids.tolist() == sample["input_ids"].tolist() and part.source == sample["source"]
            assert torch.equal(part.tiles, sample["tiles"]) and part.segments == (len(sample["input_ids"]),)
            assert part.labels.tolist()[1:] == sample["labels"].tolist()[1:]
            assert f"({int((part.labels >= 0).sum())} learned)" in part.describe()
        lines = describe_batch(batch, dataset.tokenizer)
        padding = batch["input_ids"].numel() - sum(len(part.ids) for part in parts)
        learned = sum(int((part.labels >= 0).sum()) for part in parts)
        assert padding > 0 and f"{padding} of them padding, {learned} learned; 4 tiles; 2 samples" in lines[0]
        assert "weight 2" in lines[1] and "left out, image_missing: " in lines[-1]
        assert r"<img>(64 image tokens)</img>\nWhere?<|im_end|>" in lines[2]
        assert "[There <b>it</b> is.<|im_end|>]" in lines[2]
    assert describe_batch(collate_packed([dataset[FILLER_INDEX]]), dataset.tokenizer)[1:] == [f"  {FILLER}"]


def test_pairs(data_base, write_data):
    pairs = [{"question": f"{number}?", "chosen": "Yes, it is.", "rejected": "No."} for number in range(2)]
    dataset = PreferenceDataset(str(data_base), write_data(pairs))
    parts = split_batch(collate_pairs([dataset[0], dataset[1]]))
    assert [part.segments for part in parts] == [tuple(dataset[index]["branches"]) for index in (0, 1)]
    assert parts[1].ids.tolist() == dataset[1]["input_ids"].tolist()
    assert draw(parts[0], dataset.tokenizer).endswith(r"chosen: [Yes, it is.<|im_end|>]\n rejected: [No.<|im_end|>]\n")
