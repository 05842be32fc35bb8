"""Measured lengths equal the samples themselves, and are kept by content."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from xtuner_plugins.datasets import DynamicTiling, MultimodalDataset, PackBatchSampler, PlanSampler, RecordError
from xtuner_plugins.datasets.collate import collate_packed
from xtuner_plugins.datasets.plan import lengths as lengths_module
from xtuner_plugins.datasets.plan.budget import DROPPED, FATES, FRAME, TileBudget, first_limit, truncate
from xtuner_plugins.datasets.text.conversation import Encoded


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
    clip = {"video": "clip"}
    records += [qa("<video> then <image>", "Both.", image="b.png", **clip), qa("word " * 300, "No.", **clip)]
    settings = dict(max_length=300, on_bad_sample="skip")
    return dict(base=data_base, data_paths=write_data(records), image_folders=folder, **settings)


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
    monkeypatch.setattr(lengths_module, "CHUNK", 7)
    several = MultimodalDataset(**settings).lengths(0, num_workers=2)
    assert len(several) == 49
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


@pytest.fixture
def half(data_base, write_data, make_image, qa):
    """Settings of 20 records, of which those with 10.png to 19.png miss their images."""
    for number in range(10):
        folder = make_image(f"{number}.png", 100, 90)
    path = write_data([qa(f"{number}?", "Yes.", image=f"{number}.png") for number in range(20)])
    return dict(base=data_base, data_paths=path, image_folders=folder)


def test_skip_trains_what_has_been_mended_and_says_why_the_rest_is_left_out(half, make_image):
    gone = list(range(10, 20))
    for mended in (13, 17):
        make_image(f"{mended}.png", 100, 90)
        gone.remove(mended)
        sampler = PlanSampler(MultimodalDataset(**half, on_bad_sample="skip"), seed=0)
        assert sorted(sampler.order(0)) == [index for index in range(20) if index not in gone]
        assert [(each["index"], each["dropped"]) for each in sampler.left_out()] == [
            (at, "image_missing") for at in gone
        ]


def test_a_plan_that_no_longer_fits_follows_the_policy(half, make_image):
    def batches(**more):
        """Of a run that starts now, read by a worker."""
        sampler = PlanSampler(MultimodalDataset(**half, **more), seed=0, group_by="length")
        packs = dict(batch_sampler=PackBatchSampler(sampler, max_tokens=200), collate_fn=collate_packed)
        return list(DataLoader(sampler.dataset, num_workers=1, **packs))

    for number in range(10, 20):
        make_image(f"{number}.png", 100, 90)
    batches()  # measures
    make_image("7.png", 360, 120)
    found = batches(on_bad_sample="skip")
    dropped = [sample for batch in found for sample in batch.get("dropped", ())]
    assert [(sample["index"], sample["dropped"]) for sample in dropped] == [(7, "plan_changed")]
    assert sum(len(batch["sources"]) for batch in found) == 19
    again = batches(on_bad_sample="skip")  # the next start has measured it
    assert not any("dropped" in batch for batch in again)
    assert sum(int(batch["num_tiles"].sum()) for batch in again) == 19 + 4
    make_image("7.png", 240, 240)
    with pytest.raises(RuntimeError, match=r"data.jsonl:8: \d+ tokens and 5 tiles, but \d+ tokens and 4 tiles"):
        batches()


WIDE, SQUARE, SMALL = (360, 120), (700, 700), (50, 50)
FITTED = [  # most tiles, images, tokens left for them, what stands before an answer; their limits, tiles and fate
    (6, [FRAME, WIDE, FRAME, SQUARE], 999, (0, 0), ([1, 3, 1, 3], [1, 4, 1, 1], 0)),
    (6, [WIDE, SQUARE, SMALL], 86, (0, 0), ([2, 2, 2], [3, 1, 1], 0)),
    (6, [WIDE, SQUARE, SMALL], 85, (0, 0), ([1, 2, 2], [1, 1, 1], 1)),
    (6, [WIDE, SQUARE, SMALL], 53, (981, 1), ([1, 2, 2], [1, 1, 1], 2)),  # 999 tokens before it
    (6, [WIDE, SQUARE, SMALL], 53, (982, 1), ([1, 2, 2], [1, 1, 1], 3)),
    # 43,200 / 4 source pixels per tile, and 490,000 / 5; then 43,200 / 3
    (12, [WIDE, SQUARE], 148, (0, 0), ([6, 6], [4, 5], 0)),
    (12, [WIDE, SQUARE], 147, (0, 0), ([2, 6], [3, 5], 1)),
    (12, [WIDE, SQUARE], 131, (0, 0), ([1, 6], [1, 5], 1)),
    (12, [SQUARE, SQUARE], 163, (0, 0), ([3, 6], [1, 5], 1)),
]


def test_images_share_the_limit_and_lose_tiles_where_they_are_needed_least_until_the_sample_fits():
    """As the official code shares them; frames are one tile."""
    assert [first_limit(12, number) for number in (0, 1, 2, 5, 13)] == [12, 12, 6, 2, 1]
    for most, sizes, room, before, expected in FITTED:
        tiling = DynamicTiling(max_tiles=most, tile_size=112)
        assert TileBudget(16, 1000).fit(tiling, sizes, 1000 - room, before) == expected, (sizes, room)


def test_the_end_is_cut_off_but_never_inside_a_span():
    sample = Encoded(np.arange(7), np.array([-100, 7, 8, -100, -100, -100, 9]), ((3, 3),))
    for max_length, length, images in ((7, 7, 1), (6, 6, 1), (5, 3, 0), (3, 3, 0), (2, 2, 0)):
        cut = truncate(sample, max_length)
        assert len(cut.spans) == images and cut.input_ids.tolist() == list(range(length))
        assert cut.labels.tolist() == sample.labels[:length].tolist()
