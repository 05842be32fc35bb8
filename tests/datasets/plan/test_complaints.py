"""What was wrong with records counts only while it is: each start looks again, and loses none in silence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from xtuner_plugins.datasets import (
    MultimodalDataset,
    PackBatchSampler,
    PlanSampler,
    RecordError,
    collate,
    collate_packed,
)
from xtuner_plugins.datasets.plan import lengths as lengths_module


@pytest.fixture
def half(data_base, write_data, make_image, qa, tmp_path):
    """Settings of 20 records, of which those with 10.png to 19.png miss their images."""
    for number in range(10):
        folder = make_image(f"{number}.png", 100, 90)
    path = write_data([qa(f"{number}?", "Yes.", image=f"{number}.png") for number in range(20)])
    return dict(base=data_base, data_paths=path, image_folders=folder)


def start(settings, **more):
    """The sampler of a run that starts now."""
    return PlanSampler(MultimodalDataset(**settings | more), seed=0, group_by="length")


def fetch(settings, *numbers):
    for number in numbers:
        shutil.copy(Path(settings["image_folders"]) / "0.png", Path(settings["image_folders"]) / f"{number}.png")


@pytest.mark.parametrize("packed", [False, True])
def test_skip_trains_what_has_been_mended_and_says_why_the_rest_is_left_out(half, packed):
    def left_out():
        sampler = start(half, on_bad_sample="skip")
        if packed:
            packs = PackBatchSampler(sampler, max_tokens=8192).packs(0)
            assert sorted(packs.order) == sorted(sampler.order(0))
        entries = sampler.left_out()
        assert {entry["dropped"] for entry in entries} == {"image_missing"}
        assert f"data: {20 - len(entries)} of 20 samples will train; left out: {len(entries)} image_missing" == (
            sampler.describe_data()
        )
        return [entry["index"] for entry in entries]

    assert left_out() == list(range(10, 20))
    fetch(half, 13, 17)
    assert left_out() == [10, 11, 12, 14, 15, 16, 18, 19]


def test_what_is_measured_again_equals_what_is_measured_at_once(half, tmp_path, monkeypatch):
    """Also where images of several records come in between those that were there."""
    with open(half["data_paths"], "a") as file:
        turns = [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "Two."}]
        for names in (["0.png", "19.png"], ["1.png", "2.png"], ["12.png", "none.png"]):
            file.write(json.dumps({"image": names, "conversations": turns}) + "\n")
    MultimodalDataset(**half).lengths(0, num_workers=0)
    for number in (11, 12, 19):
        fetch(half, number)
    again = MultimodalDataset(**half).lengths(0)
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "other"))
    alone = MultimodalDataset(**half).lengths(0, num_workers=0)
    for name in lengths_module.ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(alone, name))
    assert again.complaints == alone.complaints and len(again.complaints) == 8


def test_a_complaint_names_the_file_that_is_used_now(half, tmp_path):
    """Two files of the same content share what was measured, but not the place of a complaint."""
    MultimodalDataset(**half).lengths(0, num_workers=0)
    other = tmp_path / "other.jsonl"
    shutil.copy(half["data_paths"], other)
    with pytest.raises(RecordError, match=f"{other}:11: "):
        start(half | {"data_paths": str(other)})


def test_names_are_looked_up_where_the_file_lies(data_base, write_data, make_image, qa, tmp_path):
    """Without an image folder two files of the same content have images of their own."""
    settings = dict(base=data_base)
    paths = [Path(write_data([qa(image="images/a.png")], name)) for name in ("data.jsonl", "more.jsonl")]
    make_image("a.png", 100, 90)
    (tmp_path / "elsewhere").mkdir()
    paths[1] = paths[1].rename(tmp_path / "elsewhere" / "data.jsonl")
    small = MultimodalDataset(data_paths=str(paths[0]), **settings)
    small.layout(num_workers=0)
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere" / "images")
    make_image("../elsewhere/images/a.png", 360, 120)
    large = MultimodalDataset(data_paths=str(paths[1]), **settings)
    for dataset, num_tiles in ((small, 1), (large, 4)):
        tokens, tiles, _ = dataset.layout(num_workers=0)
        sample = dataset[0]
        assert tiles.tolist() == [sample["num_tiles"]] == [num_tiles] and tokens.tolist() == [len(sample["labels"])]


def replace_image(settings, number, width, height):
    Image.new("RGB", (width, height)).save(Path(settings["image_folders"]) / f"{number}.png")


def loader_of(settings, packed, num_workers, **more):
    """The loader of a run that starts now, in packs or in groups of three."""
    sampler = start(settings, **more)
    if packed:
        batches = PackBatchSampler(sampler, max_tokens=200)
        return DataLoader(sampler.dataset, batch_sampler=batches, collate_fn=collate_packed, num_workers=num_workers)
    return DataLoader(sampler.dataset, 3, sampler=sampler, collate_fn=collate, num_workers=num_workers)


@pytest.mark.parametrize("packed, num_workers, size", [(True, 1, (360, 120)), (False, 0, (40, 40))])
def test_a_plan_that_no_longer_fits_follows_the_policy(half, packed, num_workers, size):
    fetch(half, *range(10, 20))
    replace_image(half, 7, 120, 240)  # 2 tiles and a thumbnail
    loader_of(half, packed, 0)  # measures
    replace_image(half, 7, *size)
    found = 4 if size == (360, 120) else 1
    loader = loader_of(half, packed, num_workers, on_bad_sample="skip")
    batches = list(loader)
    dropped = [sample for batch in batches for sample in batch.get("dropped", ())]
    assert [(sample["index"], sample["dropped"]) for sample in dropped] == [(7, "plan_changed")]
    assert sum(len(batch["sources"]) for batch in batches) == 19
    again = loader_of(half, packed, num_workers, on_bad_sample="skip")  # the next start has measured it
    assert not any("dropped" in batch for batch in again)
    assert sum(int(batch["num_tiles"].sum()) for batch in again) == 19 + found
    replace_image(half, 7, 240, 240)
    words = rf"data.jsonl:8: \d+ tokens and 5 tiles, but \d+ tokens and {found} tiles"
    with pytest.raises((RecordError, RuntimeError), match=words):
        list(loader_of(half, packed, num_workers))

    (Path(half["image_folders"]) / "3.png").unlink()
    with pytest.raises(RecordError, match=r"data.jsonl:4: .*3.png: no such"):
        list(loader_of(half, packed, 0))
