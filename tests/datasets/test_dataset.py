"""Samples of a mixture: their tiles, tokens and places, in this process and as MMEngine builds them."""

import logging
import random

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from xtuner_plugins.datasets import DynamicTiling, MultimodalDataset, figures
from xtuner_plugins.datasets.figures import file_figures
from xtuner_plugins.datasets.images.media import load_image


@pytest.fixture
def mixture(data_base, write_data, make_image, qa):
    """Two files: three records with images (one tile, several tiles), four without."""
    make_image("a.png", 100, 90)
    make_image("b.png", 360, 120)
    folder, images = make_image("sub/c.jpg", 300, 400), ("a.png", "b.png", "sub/c.jpg")
    answers = ("Yes.", "No.", "Perhaps.")
    seen = write_data(
        [qa("<image>?", answer, image=name) for name, answer in zip(images, answers, strict=True)], "a.json"
    )
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
    assert sample["source"] == mixture["data_paths"][0] + ":15"
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.int64
    dataset = MultimodalDataset(**mixture, max_tiles=2, template="Hermes-2")
    source = dataset.sources[0]
    assert source.tiling == DynamicTiling(1, 2, 112) and source.template.name == "Hermes-2"
    assert len(dataset[1]["tiles"]) == 3


def test_from_config_with_workers_and_collate(mixture, hf_tokenizer):
    """As MMEngine builds it from a config with strings, in worker processes."""
    pad = hf_tokenizer.pad_token_id
    loader = dict(sampler=dict(type="DefaultSampler", shuffle=False), batch_size=4, num_workers=2)
    loader |= dict(collate_fn=dict(type="collate", pad_token_id=pad, pad_to_multiple_of=64))
    first, second = list(Runner.build_dataloader(dict(dataset=dict(type="MultimodalDataset", **mixture), **loader)))
    assert first["input_ids"].shape == first["labels"].shape == first["attention_mask"].shape
    assert first["input_ids"].shape[1] % 64 == 0
    assert first["attention_mask"].dtype == torch.bool and first["tiles"].dtype == torch.uint8
    assert first["num_tiles"].tolist()[1::2] == [4, 0] and first["num_tiles"].sum() == len(first["tiles"])
    dataset = MultimodalDataset(**mixture)
    for row, length in enumerate(first["attention_mask"].sum(1)):
        assert first["attention_mask"][row, :length].all()
        for name, rest in (("input_ids", pad), ("labels", -100)):
            assert (
                torch.equal(first[name][row, :length], dataset[row][name]) and (first[name][row, length:] == rest).all()
            )
    assert second["tiles"].shape == (0, 3, 112, 112) and second["num_tiles"].tolist() == [0, 0, 0]
    assert second["sources"][-1].endswith("text.jsonl:4")


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
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    samples = list(MultimodalDataset(**mixture))
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    for a, b in zip(samples, MultimodalDataset(**mixture), strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"]) and torch.equal(a["tiles"], b["tiles"])


def test_the_first_warning_of_each_reason_is_logged(data_base, write_data, make_image, qa):
    """Training doesn't learn a doubtful record in silence, and doesn't say the same of a million of them."""
    records = [qa("Fine?"), *(qa(f"{index}?", "See <image_1>.", image="a.png") for index in range(3))]
    dataset = MultimodalDataset(str(data_base), [write_data(records)], make_image("a.png", 100, 90))
    messages, handler, logger = [], logging.Handler(), MMLogger.get_current_instance()
    handler.emit = lambda entry: messages.append(entry.getMessage())
    logger.addHandler(handler)
    try:
        assert len(list(dataset)) == 4 and len(messages) == 1
    finally:
        logger.removeHandler(handler)
    assert "data.jsonl:2: " in messages[0] and "<image_1>" in messages[0] and "tools/check_data.py" in messages[0]


def test_figures_of_measured_and_of_opened_samples_are_the_same(mixture, monkeypatch):
    dataset = MultimodalDataset(**mixture, repeat_times=[1, 2], dataset_settings=[{"name": "photos"}, {"name": "text"}])
    seen = file_figures(dataset)  # every sample is opened
    assert [(each.name, each.samples, each.seen) for each in seen] == [("photos", 3, 3), ("text", 8, 8)]
    with monkeypatch.context() as fewer:
        fewer.setattr(figures, "LOOK_AT", 4)
        assert [each.seen for each in file_figures(dataset)] == [2, 2]
        fewer.setattr(figures, "LOOK_SECONDS", -1.0)
        assert [each.seen for each in file_figures(dataset)] == [0, 0]
    dataset.layout(num_workers=0)
    for before, after in zip(seen, file_figures(dataset), strict=True):
        assert after.is_measured and not before.is_measured
        for name in ("tokens", "tiles", "supervised", "seen"):
            assert getattr(before, name) == pytest.approx(getattr(after, name))
    assert seen[0].tiles > 1 and seen[1].tiles == 0 and seen[1].supervised > 1
