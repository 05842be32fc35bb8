"""Measured lengths equal the samples themselves, and are kept by content."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.plan import lengths as lengths_module
from xtuner_plugins.datasets.plan.lengths import DROPPED, FATES


@pytest.fixture
def settings(data_base, write_data, make_image, qa):
    """Every kind of record: no image, one, several, in the text, long, with a system message, videos, broken ones."""
    sizes = {"a.png": (100, 90), "b.png": (360, 120), "c.png": (120, 360), "d.png": (700, 650)}
    sizes |= {f"clip/{number}.png": (50 + number, 40) for number in range(5)}
    for name, size in sizes.items():
        folder = make_image(name, *size)
    records = [qa(f"Question {i}?", f"answer {'long ' * (i % 7)}{i}", image="abcd"[i % 4] + ".png") for i in range(20)]
    records += [qa("No image.", "None." * (i + 1)) for i in range(5)]
    records += [qa("<image> or <image> or <image>?", "The first.", image=["b.png", "d.png", "a.png"])]
    records += [qa("Long?", "word " * 400, image="d.png"), qa("word " * 400, "Late.", image="d.png")]
    records += [qa("Middling?", "word " * number, image="d.png") for number in range(10, 150, 10)]
    records += [qa("Where is <ref>it</ref>?", "<ref>it</ref><box>[[1, 2, 3, 4]]</box> <box>", image="a.png")]
    texts = ["user", "Two words.", "\u00e9 <|im_end|>\n\n e\u0301?", " 2 ", "", "中文 words."]
    records += [{"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]}]
    records += [qa("S?", "S.", system="Be <|im_end|> brief."), qa(image="missing.png"), {"text": 3}]
    records += [
        qa("<video> then <image>", "Both.", video="clip", image="b.png"),
        qa("word " * 300, "No.", video="clip"),
    ]
    paths = dict(data_paths=write_data(records), image_folders=folder)
    return dict(base=data_base, **paths, max_length=300, on_bad_sample="skip")


EXTRA = [{}, {"max_length": 60}, {"max_length": 97, "max_tiles": 12}, {"max_length": 2000, "num_frames": 2}]
EXTRA += [{"max_tiles": 2}, {"template": "phi3-chat"}]


@pytest.mark.parametrize("extra", EXTRA, ids=str)
def test_lengths_equal_the_samples(settings, extra):
    dataset = MultimodalDataset(**settings | extra)
    columns, lengths = dataset.layout(num_workers=0), dataset.lengths(0)
    for index, (tokens, tiles, fate) in enumerate(zip(*columns, strict=True)):
        sample = dataset[index]
        if "dropped" in sample:
            assert fate >= DROPPED and tokens == tiles == 0
            assert (FATES[fate] == "too_long") == (sample["dropped"] == "too_long")
        elif FATES[fate] == "truncate_text":
            assert len(sample["input_ids"]) <= tokens == dataset.budget.max_length and sample["num_tiles"] <= tiles
        else:
            assert (len(sample["input_ids"]), sample["num_tiles"]) == (tokens, tiles)
            learned = np.flatnonzero(sample["labels"] != -100)
            before, vocabulary = sample["input_ids"][: learned[0]], dataset.tokenizer
            starts = int((before == vocabulary.image_start_id).sum())
            spans = int((before == vocabulary.image_context_id).sum()) + 2 * starts
            assert lengths.supervised[index] == len(learned)
            assert lengths.prefix[index].tolist() == [learned[0] - spans, starts]
    assert extra or set(columns[2]) == set(range(5))  # every fate is met
    reasons = [(row, each.reason) for row, each in lengths.complaints.items()]
    assert reasons == [(45, "image_missing"), (46, "no_conversations")]
    dataset.on_bad_sample = "raise"
    with pytest.raises(RecordError, match=":46: .*missing.png"):
        dataset.usable(columns[2])


def test_kept_by_content_and_by_everything_that_is_measured(settings, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(lengths_module, "CHUNK", 7)
    several = MultimodalDataset(**settings).lengths(0, num_workers=2, progress=done.append)
    assert sum(done) == len(several) == 49
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "other"))
    alone = MultimodalDataset(**settings).lengths(0, num_workers=0)
    for name in lengths_module.ARRAYS:
        np.testing.assert_array_equal(getattr(several, name), getattr(alone, name))
    monkeypatch.setattr(lengths_module, "_build", lambda *args: 1 / 0)
    os.utime(settings["data_paths"])  # a new time, the same content
    copied = shutil.copy(settings["data_paths"], tmp_path / "copy.jsonl")
    for change in ({}, {"max_tiles": 3}, {"data_paths": copied}):  # tiling is laid out anew, nothing is measured anew
        MultimodalDataset(**settings | change).layout()
    shorter, empty = tmp_path / "shorter.jsonl", tmp_path / "empty"
    shorter.write_text(Path(copied).read_text().partition("\n")[0])
    empty.mkdir()
    changes = [{"data_paths": shorter}, {"image_folders": str(empty)}, {"image_folders": None}]
    for change in (*changes, {"template": "Hermes-2"}, {"num_frames": 4}):
        with pytest.raises(ZeroDivisionError):
            MultimodalDataset(**settings | change).layout()
