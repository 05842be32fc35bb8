"""Samples of a mixture: their tiles, tokens and places."""

import random

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from xtuner_plugins.datasets import DynamicTiling, MultimodalDataset, figures
from xtuner_plugins.datasets.figures import file_figures
from xtuner_plugins.datasets.images.media import load_image


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
    dataset = MultimodalDataset(**mixture, max_tiles=2, template="Hermes-2")
    source = dataset.sources[0]
    assert source.tiling == DynamicTiling(1, 2, 112) and source.template.name == "Hermes-2"
    assert len(dataset[1]["tiles"]) == 3


def test_a_long_sample_loses_tiles_then_text_then_its_place(data_base, write_data, make_image, qa):
    settings = dict(base=data_base, image_folders=make_image("a.png", 360, 120))
    settings["data_paths"] = write_data([qa("Q?", "word " * 30, image="a.png")])
    whole = MultimodalDataset(**settings)[0]
    length = len(whole["input_ids"])
    fewer, one, cut = (MultimodalDataset(**settings, max_length=length - less)[0] for less in (1, 48, 50))
    assert [len(sample["tiles"]) for sample in (whole, fewer, one, cut)] == [4, 3, 1, 1]
    assert [sample["fate"] for sample in (whole, fewer, cut)] == ["fits", "shrink_tiles", "truncate_text"]
    assert torch.equal(fewer["input_ids"][-40:], whole["input_ids"][-40:]) and len(one["input_ids"]) == length - 48
    assert torch.equal(cut["input_ids"], one["input_ids"][:-2])
    gone = MultimodalDataset(**settings, max_length=30)[0]
    assert gone["dropped"] == "too_long" and "max_length is 30" in gone["message"]


def test_samples_take_no_random_numbers(mixture):
    """So a worker's generators don't matter, and a resumed run, whose workers are new, gets the same samples."""
    before, runs = None, []
    for seed in (0, 1):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        runs.append(
            [sample["input_ids"].tolist() + sample["tiles"].tolist() for sample in list(MultimodalDataset(**mixture))]
        )
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert runs[0] == runs[1]


def test_the_first_warning_of_each_reason_is_logged(data_base, write_data, make_image, qa, monkeypatch):
    """Training doesn't learn a doubtful record in silence, and doesn't say the same of a million of them."""
    records = [qa("Fine?"), *(qa(f"{index}?", "See <image_1>.", image="a.png") for index in range(3))]
    dataset = MultimodalDataset(str(data_base), [write_data(records)], make_image("a.png", 100, 90))
    messages = []
    monkeypatch.setattr(MMLogger.get_current_instance(), "handle", lambda entry: messages.append(entry.getMessage()))
    assert len(list(dataset)) == 4 and len(messages) == 1
    assert "data.jsonl:2: " in messages[0] and "<image_1>" in messages[0] and "tools/check_data.py" in messages[0]


def test_figures_of_measured_and_of_opened_samples_are_the_same(mixture, monkeypatch):
    dataset = MultimodalDataset(**mixture, repeat_times=[1, 2], dataset_settings=[{"name": "photos"}, {"name": "text"}])
    seen = file_figures(dataset)  # every sample is opened
    assert [(each.name, each.samples, each.seen) for each in seen] == [("photos", 3, 3), ("text", 8, 8)]
    assert seen[0].tiles > 1 and seen[1].tiles == 0 and seen[1].supervised > 1
    for name, value, expected in (("LOOK_AT", 4, [2, 2]), ("LOOK_SECONDS", -1.0, [0, 0])):
        monkeypatch.setattr(figures, name, value)
        assert [each.seen for each in file_figures(dataset)] == expected
    dataset.layout(num_workers=0)
    for before, after in zip(seen, file_figures(dataset), strict=True):
        assert after.is_measured and not before.is_measured
        for name in ("tokens", "tiles", "supervised", "seen"):
            assert getattr(before, name) == pytest.approx(getattr(after, name))
