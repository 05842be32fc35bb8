"""Measured lengths equal the samples themselves, are kept by content, and are built once."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.plan import lengths as lengths_module
from xtuner_plugins.datasets.plan.lengths import DROPPED, FATES


@pytest.fixture
def settings(data_base, write_data, make_image, qa, tmp_path):
    """Every kind of record: no image, one, several, in the text, long, with a system message, broken ones."""
    sizes = {"a.png": (100, 90), "b.png": (360, 120), "c.png": (120, 360), "d.png": (700, 650)}
    for name, size in sizes.items():
        folder = make_image(name, *size)
    records = [qa(f"Question {i}?", f"answer {'long ' * (i % 7)}{i}", image=list(sizes)[i % 4]) for i in range(20)]
    records += [qa("No image.", "None." * (i + 1)) for i in range(5)]
    records += [qa("<image> or <image> or <image>?", "The first.", image=["b.png", "d.png", "a.png"])]
    records += [qa("Long?", "word " * 400, image="d.png"), qa("word " * 400, "Late.", image="d.png")]
    records += [qa("Middling?", "word " * number, image="d.png") for number in range(10, 150, 10)]
    records += [qa("Where is <ref>it</ref>?", "<ref>it</ref><box>[[1, 2, 3, 4]]</box> <box>", image="a.png")]
    texts = ["user", "Two words.", "\u00e9 <|im_end|>\n\n e\u0301?", " 2 ", "", "中文 words."]
    records += [{"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]}]
    records += [qa("S?", "S.", system="Be <|im_end|> brief."), qa(image="missing.png"), {"text": 3}]
    for number in range(5):
        make_image(f"clip/{number}.png", 50 + number, 40)
    records += [qa("<video> then <image>", "Both.", video="clip", image="b.png")]
    records += [qa("word " * 300, "No.", video="clip")]
    path = write_data(records)
    return dict(base=data_base, data_paths=path, image_folders=folder, max_length=300, on_bad_sample="skip")


EXTRA = [{}, {"max_length": 60}, {"max_length": 97, "max_tiles": 12}, {"max_length": 2000, "num_frames": 2}]
EXTRA += [{"max_tiles": 2}, {"template": "phi3-chat"}]


@pytest.mark.parametrize("extra", EXTRA, ids=str)
def test_lengths_equal_the_samples(settings, extra):
    dataset = MultimodalDataset(**settings | extra)
    columns = dataset.layout(num_workers=0)
    lengths = dataset.lengths(0)
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
            starts = int((sample["input_ids"][: learned[0]] == dataset.tokenizer.image_start_id).sum())
            spans = int((sample["input_ids"][: learned[0]] == dataset.tokenizer.image_context_id).sum()) + 2 * starts
            assert lengths.supervised[index] == len(learned)
            assert lengths.prefix[index].tolist() == [learned[0] - spans, starts]
    assert extra or set(columns[2]) == set(range(5))  # every fate is met
    assert list(lengths.complaints) == [45, 46] and "missing.png: no such" in lengths.complaints[45].problem
    assert [each.reason for each in lengths.complaints.values()] == ["image_missing", "no_conversations"]
    dataset.on_bad_sample = "raise"
    with pytest.raises(RecordError, match=":46: .*missing.png"):
        dataset.usable(columns[2])


def test_kept_by_content_and_by_everything_that_is_measured(settings, monkeypatch, cache, tmp_path):
    done, before = [], os.umask(0o022)
    monkeypatch.setattr(lengths_module, "CHUNK", 7)
    try:
        several = MultimodalDataset(**settings).lengths(0, num_workers=2, progress=done.append)
    finally:
        os.umask(before)
    assert sum(done) == len(several)
    # colleagues share a cache folder
    assert {path.stat().st_mode & 0o777 for path in cache.rglob("*") if path.is_file()} == {0o644}
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "other"))
    alone = MultimodalDataset(**settings).lengths(0, num_workers=0)
    for name in lengths_module.ARRAYS:
        np.testing.assert_array_equal(getattr(several, name), getattr(alone, name))

    monkeypatch.setattr(lengths_module, "_build", lambda *args: 1 / 0)
    os.utime(settings["data_paths"])  # a new time, the same content
    copied = shutil.copy(settings["data_paths"], tmp_path / "copy.jsonl")
    for change in ({}, {"max_tiles": 3}, {"data_paths": copied}):  # tiling is laid out anew, nothing is measured anew
        MultimodalDataset(**settings | change).layout()
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text(Path(copied).read_text().partition("\n")[0])
    (tmp_path / "empty").mkdir()
    changes = [{"data_paths": shorter}, {"image_folders": str(tmp_path / "empty")}, {"image_folders": None}]
    for change in (*changes, {"template": "Hermes-2"}, {"num_frames": 4}):
        with pytest.raises(ZeroDivisionError):
            MultimodalDataset(**settings | change).layout()


def test_of_two_that_start_together_one_builds(settings):
    context = multiprocessing.get_context("fork")
    counter, real = context.Value("i", 0), lengths_module._build

    def slow(*args):
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.3)
        return real(*args)

    def run():
        lengths_module._build = slow
        assert len(MultimodalDataset(**settings).lengths(0, num_workers=0)) == 49

    runs = [context.Process(target=run) for _ in range(2)]
    for each in runs:
        each.start()
    for each in runs:
        each.join(60)
    assert [each.exitcode for each in runs] == [0, 0] and counter.value == 1
