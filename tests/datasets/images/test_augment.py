"""Changed images keep their grid, their boxes and their number of tokens, and are the same in every process."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from xtuner_plugins.datasets import DynamicTiling, MultimodalDataset, PlanSampler, PreferenceDataset, SettingError
from xtuner_plugins.datasets.images.augment import WHOLE, Augmentation, Window, move_boxes
from xtuner_plugins.datasets.images.tiling import cut_tiles
from xtuner_plugins.datasets.records.boxes import normalize_boxes
from xtuner_plugins.datasets.records.records import parse_record

RULE = DynamicTiling(1, 6, 112)


def record(answer, question="<image>\nWhere?", **facts):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return normalize_boxes(parse_record({"image": "a.png", "conversations": turns, **facts}, "a.jsonl:1"))


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def image():
    noise = rng().integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((360, 240), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("settings", [None, {}, {"color": 0}, {"crop": 1.0}, {"jpeg_quality": None}])
def test_nothing_to_change(settings):
    assert Augmentation.of(settings) is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"flip": True}, r"augment has \['flip'\]; give some of jpeg_quality, color, crop"),
        ({"jpeg_quality": 75}, "jpeg_quality=75; give"),
        ({"jpeg_quality": (90, 75)}, "lowest, highest"),
        ({"jpeg_quality": (0, 75)}, "from 1 to 100"),
        ({"jpeg_quality": (75.0, 100)}, "jpeg_quality"),
        ({"color": 1}, "color=1"),
        ({"color": "much"}, "color='much'"),
        ({"crop": 0.2}, "crop=0.2; give the smallest share"),
        ({"crop": True}, "crop=True"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(SettingError, match=message):
        Augmentation.of(settings)


def test_jpeg_is_that_of_pillow_on_each_tile(image):
    changes = Augmentation.of({"jpeg_quality": [80, 80]}).draw(record("Here."), rng())
    found = changes.cut(image, RULE)
    grid = RULE.grid(*image.size)
    assert found.grid == grid and found.size == image.size and grid.num_tiles == 7
    for tile, whole in zip(found.tiles, cut_tiles(image, grid, 112), strict=True):
        file = io.BytesIO()
        Image.fromarray(whole.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=80)
        assert torch.equal(tile, torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
        assert not torch.equal(tile, whole)


def test_qualities_are_of_the_range(image, monkeypatch):
    asked = []
    monkeypatch.setattr(functional, "jpeg", lambda tile, quality: asked.append(quality) or tile)
    draw = Augmentation.of({"jpeg_quality": (75, 100)}).draw
    for seed in range(60):
        draw(record("Here."), rng(seed)).cut(image, RULE)
    assert set(asked) == set(range(75, 101))


def test_color_changes_brightness_and_keeps_the_grid(image):
    changes = Augmentation.of({"color": 0.5}).draw(record("Here."), rng(1))
    assert len(changes.color) == 3 and all(0.5 <= factor <= 1.5 for factor in changes.color)
    found, whole = changes.cut(image, RULE), cut_tiles(image, RULE.grid(*image.size), 112)
    assert found.tiles.shape == whole.shape and not torch.equal(found.tiles, whole)


def test_a_window_stretches_over_the_grid_of_the_whole_image(image):
    thin = image.crop((0, 0, 360, 119))  # at its own size the window would get another grid
    changes = Augmentation.of({"crop": 0.5}).draw(record("Here."), rng(3))
    left, top, share = changes.window
    assert 0.5 <= share < 1 and 0 <= left <= 1 - share and 0 <= top <= 1 - share
    found = changes.cut(thin, RULE)
    assert found.grid == RULE.grid(*thin.size) and len(found.tiles) == found.grid.num_tiles


def test_boxes_move_with_the_pixels():
    """A red field, whose box is known, is found at the moved box."""
    field = Image.new("RGB", (400, 400), "white")
    field.paste("red", (120, 200, 240, 320))
    asked = record("<ref>field</ref><box>[[300, 500, 600, 800]]</box>")
    for seed in range(20):
        changes = Augmentation.of({"crop": 0.6}).draw(asked, rng(seed))
        assert changes.window != WHOLE
        text = move_boxes(asked, changes.window).turns[1].text
        ((x1, y1, x2, y2),) = json.loads(re.search(r"<box>(.*)</box>", text)[1])
        red = np.argwhere(changes.cut(field, DynamicTiling(1, 1, 400)).tiles[0][1].numpy() < 128)
        (top, left), (bottom, right) = red.min(axis=0), red.max(axis=0) + 1
        assert np.allclose([left, top, right, bottom], np.array([x1, y1, x2, y2]) * 0.4, atol=2.5)


@pytest.mark.parametrize(
    "kept",
    [
        record("<box>[[0, 0, 1000, 1000]]</box>"),
        record("<box>[[0, 400, 500, 600]]</box> and <box>[[900, 0, 1000, 10]]</box>"),
        record("<quad>[[1, 2, 3, 4, 5, 6, 7, 8]]</quad>"),
        record("<box> is a tag"),
        record("<box>[[400, 400, 500, 600], [450, 500]]</box>"),  # a point
        record("<box>[[400, 400, 500, 600], [450, true, 500, 600]]</box>"),
        record("Both.", "<image><image>\nWhere?", image=["a.png", "b.png"]),
    ],
)
def test_what_is_left_whole(kept):
    for seed in range(10):
        window = Augmentation.of({"crop": 0.8}).draw(kept, rng(seed)).window
        left, top, share = window
        assert window == WHOLE or (left == 0 and share == 1)


def test_a_box_of_the_whole_width_moves_with_the_window():
    boxes = "<box>[0, 500, 500, 750]</box> 7 <box>[[10,5e2,20,750],[10, 500.0, 20,750]]</box>"
    moved = move_boxes(record(boxes), Window(0, 0.25, 0.5))
    expected = "<box>[0, 500, 1000, 1000]</box> 7 <box>[[20,500,40,1000],[20, 500, 40,1000]]</box>"
    assert moved.turns[1].text == expected  # spaces and words as they were


@pytest.fixture
def settings(data_base, write_data, make_image, qa):
    folder = make_image("a.png", 360, 120)
    box = "<ref>it</ref><box>[[400, 410, 600, 620]]</box>"
    records = [qa(f"<image>\nWhere is {number}?", box, image="a.png") for number in range(12)]
    return dict(base=str(data_base), data_paths=[write_data(records, "boxes.jsonl")], image_folders=[folder])


AUGMENT = {"jpeg_quality": (75, 100), "color": 0.2, "crop": 0.7}


def test_in_a_dataset_every_epoch_differs_and_every_reading_repeats(settings, hf_tokenizer):
    dataset, plain = MultimodalDataset(**settings, augment=AUGMENT), MultimodalDataset(**settings)
    sampler = PlanSampler(dataset, seed=0, shuffle=False)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        first, again = ([dataset[index] for index in indices] for _ in range(2))
        for one, other, whole in zip(first, again, map(plain.__getitem__, range(12)), strict=True):
            assert torch.equal(one["tiles"], other["tiles"]) and torch.equal(one["labels"], other["labels"])
            assert one["tiles"].shape == whole["tiles"].shape and not torch.equal(one["tiles"], whole["tiles"])
            assert len(one["input_ids"]) == len(whole["input_ids"])
        epochs.append(first)
    assert sum(torch.equal(a["tiles"], b["tiles"]) for a, b in zip(*epochs, strict=True)) == 0
    answers = {hf_tokenizer.decode(s["labels"][s["labels"] != -100]) for epoch in epochs for s in epoch}
    assert len(answers) > 12  # boxes move


def test_processes_and_plans_change_nothing(settings):
    dataset = MultimodalDataset(**settings, augment=AUGMENT)
    planned = MultimodalDataset(**settings, augment=AUGMENT)
    planned.layout()  # lengths are compared from now on
    sampler = PlanSampler(dataset, seed=0)
    alone = [dataset[index]["tiles"] for index in sampler]
    assert all(torch.equal(a, planned[index]["tiles"]) for a, index in zip(alone, sampler, strict=True))
    loader = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=2, multiprocessing_context="forkserver")
    assert all(torch.equal(a, sample["tiles"]) for a, sample in zip(alone, loader, strict=True))
    sampler.seek(0, 5)  # a resume
    assert all(torch.equal(a, dataset[index]["tiles"]) for a, index in zip(alone[5:], sampler, strict=True))


def test_files_have_their_own(settings):
    two = {name: value * 2 if isinstance(value, list) else value for name, value in settings.items()}
    dataset = MultimodalDataset(**two, dataset_settings=[None, {"augment": {"color": 0.3}}])
    assert not torch.equal(dataset[0]["tiles"], dataset[12]["tiles"])
    assert torch.equal(dataset[0]["tiles"], dataset.load(1, 0)["tiles"])  # checks and measures see images as they are
    dataset.keep_images()  # as validation does
    assert torch.equal(dataset[0]["tiles"], dataset[12]["tiles"])
    with pytest.raises(SettingError, match="augment=3 can't be used; give a dict"):
        MultimodalDataset(**settings, augment=3)


def test_routes_give_the_same_tiles(settings):
    first, second = (MultimodalDataset(**settings, augment=AUGMENT, route=r) for r in ("pillow", "torchvision"))
    assert torch.equal(first[0]["tiles"], second[0]["tiles"])


def test_both_answers_of_a_pair_move(data_base, write_data, make_image, hf_tokenizer):
    folder = make_image("a.png", 360, 120)
    answers = ["<box>[[400, 410, 600, 620]]</box>", "<box>[[300, 410, 500, 620]]</box>"]
    pair = {"image": "a.png", "question": "<image>\nWhere?", "chosen": answers[0], "rejected": answers[1]}
    settings = dict(base=str(data_base), data_paths=[write_data([pair], "pairs.jsonl")], image_folders=[folder])
    plain, sample = (PreferenceDataset(**settings, **own)[0] for own in ({}, {"augment": {"crop": 0.7}}))
    texts = [hf_tokenizer.decode(found["labels"][found["labels"] != -100]) for found in (plain, sample)]
    assert all(answer in texts[0] and answer not in texts[1] for answer in answers)
    assert sample["branches"] == plain["branches"]
