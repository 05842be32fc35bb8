"""Samples of a mixture: their tiles, tokens and places."""

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from xtuner_plugins.datasets import DynamicTiling, MultimodalDataset, collate
from xtuner_plugins.datasets.figures import file_figures
from xtuner_plugins.datasets.images.media import load_image
from xtuner_plugins.models import VisionLanguageModel


@pytest.fixture
def mixture(data_base, write_data, make_image, qa):
    """Two files: three records with images (one tile, several tiles), four without."""
    images = {"a.png": (100, 90), "b.png": (360, 120), "sub/c.jpg": (300, 400)}
    for name, size in images.items():
        folder = make_image(name, *size)
    seen = write_data([qa("<image>?", "No.", image=name) for name in images], "a.json")
    text = write_data([qa(f"{i}?", f"{i}.") for i in range(4)], "text.jsonl")
    return dict(base=str(data_base), data_paths=[seen, text], image_folders=[folder, None])


def test_a_sample_with_its_tiles(mixture, hf_tokenizer):
    dataset = MultimodalDataset(**mixture)
    assert [sample["index"] for sample in list(dataset)] == list(range(7)) and dataset[-1]["index"] == 6
    for index in (7, -8):
        with pytest.raises(IndexError):
            dataset[index]
    sample = dataset[1]
    image = load_image(mixture["image_folders"][0] + "/b.png")
    assert torch.equal(sample["tiles"], DynamicTiling(1, 6, 112)(image)) and len(sample["tiles"]) == 4
    assert (sample["input_ids"] == hf_tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")).sum() == 4 * 16
    assert hf_tokenizer.decode(sample["labels"][sample["labels"] != -100]) == "No.<|im_end|>"
    assert sample["source"] == mixture["data_paths"][0] + ":15" and dataset[6]["source"].endswith("text.jsonl:4")
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.int64
    other = MultimodalDataset(**mixture, max_tiles=2, template="Hermes-2")
    assert len(other[1]["tiles"]) == 3 and other.sources[0].template.name == "Hermes-2"


# How a sample with n supervised tokens counts; as the official code's len2weight.
REDUCTIONS = {"token": lambda n: 1.0, "sample": lambda n: 1 / n, "square": lambda n: n**-0.5}


def test_the_loss_is_the_mean_weighted_by_reduction_and_file(toy_base, write_data, make_image, qa):
    """By hand: the sum of weight x cross entropy over all tokens, by their weights; the last file's weigh double."""
    model = VisionLanguageModel(base=str(toy_base), dtype="float32").train()
    short = [qa("A?", "Yes.", image="a.png"), qa("B?", "It is not so, and never was, I think.")]
    paths = [write_data(short, name="a.json"), write_data([qa("C?", "No, it isn't.")], name="b.json")]
    settings = dict(image_folders=make_image("a.png", 100, 90), dataset_settings=[None, {"loss_weight": 2.0}])
    for reduction, weight_of in REDUCTIONS.items():
        samples = list(MultimodalDataset(str(toy_base), paths, **settings, loss_reduction=reduction))
        counts = torch.tensor([int((sample["labels"] != -100).sum()) for sample in samples])
        weights = torch.tensor([weight_of(count) for count in counts.tolist()]) * torch.tensor([1, 1, 2])
        outputs = model(**model.data_preprocessor(collate(samples), True), mode="loss")
        expected = (weights * outputs["sample_losses"]).sum() / (weights * counts).sum()
        assert len(set(counts.tolist())) == 3 and outputs["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_first_warning_of_each_reason_is_logged(data_base, write_data, make_image, qa, monkeypatch):
    """Training doesn't learn a doubtful record in silence, and doesn't say the same of a million of them."""
    records = [qa("Fine?"), *(qa(f"{index}?", "See <image_1>.", image="a.png") for index in range(3))]
    dataset, messages = MultimodalDataset(str(data_base), [write_data(records)], make_image("a.png", 100, 90)), []
    monkeypatch.setattr(MMLogger.get_current_instance(), "handle", lambda entry: messages.append(entry.getMessage()))
    assert len(list(dataset)) == 4 and len(messages) == 1
    assert "data.jsonl:2: " in messages[0] and "<image_1>" in messages[0] and "tools/check_data.py" in messages[0]


def test_figures_are_means_of_what_is_measured(mixture):
    dataset = MultimodalDataset(**mixture, repeat_times=[1, 2], dataset_settings=[{"name": "photos"}, {"name": "text"}])
    before = [(each.name, each.samples, each.seen, each.is_measured) for each in file_figures(dataset)]
    assert before == [("photos", 3, 0, False), ("text", 8, 0, False)]
    dataset.layout(num_workers=0)
    for figures, samples in zip(file_figures(dataset), ([*dataset][:3], [*dataset][3:]), strict=True):
        assert figures.is_measured and figures.seen == len(samples)
        counts = [(len(s["labels"]), s["num_tiles"], int((s["labels"] != -100).sum())) for s in samples]
        assert (figures.tokens, figures.tiles, figures.supervised) == pytest.approx(np.mean(counts, axis=0))
