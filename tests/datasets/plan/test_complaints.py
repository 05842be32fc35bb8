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
from xtuner_plugins.datasets.plan.lengths import ARRAYS


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


def draw(settings, numbers, size=(100, 90)):
    for number in numbers:
        Image.new("RGB", size).save(Path(settings["image_folders"]) / f"{number}.png")


def test_skip_trains_what_has_been_mended_and_says_why_the_rest_is_left_out(half, tmp_path, monkeypatch):
    """What is measured again equals what is measured at once, also where records of several images come in between."""
    gone = list(range(10, 20))
    for mended in ((), (13, 17)):
        draw(half, mended)
        gone = [index for index in gone if index not in mended]
        sampler = start(half, on_bad_sample="skip")
        assert sorted(PackBatchSampler(sampler, max_tokens=8192).packs(0).order) == sorted(sampler.order(0))
        entries = [(entry["index"], entry["dropped"]) for entry in sampler.left_out()]
        assert entries == [(index, "image_missing") for index in gone]
        words = f"data: {20 - len(gone)} of 20 samples will train; left out: {len(gone)} image_missing"
        assert words == sampler.describe_data()
    with open(half["data_paths"], "a") as file:
        for names in (["0.png", "19.png"], ["1.png", "2.png"], ["12.png", "none.png"]):
            file.write(json.dumps({"images": names, "query": "<image><image>", "response": "Two."}) + "\n")
    MultimodalDataset(**half).lengths(0, num_workers=0)
    draw(half, (11, 12, 19))
    again = MultimodalDataset(**half).lengths(0)
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "other"))
    alone = MultimodalDataset(**half).lengths(0, num_workers=0)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(alone, name))
    assert again.complaints == alone.complaints and len(again.complaints) == 6


def test_files_of_one_content_have_places_and_images_of_their_own(half, tmp_path):
    """They share what was measured; without an image folder names are looked up where the file lies."""
    MultimodalDataset(**half).lengths(0, num_workers=0)
    other = tmp_path / "elsewhere" / "data.jsonl"
    other.parent.mkdir()
    shutil.copy(half["data_paths"], other)
    with pytest.raises(RecordError, match=f"{other}:11: "):
        start(half | {"data_paths": str(other)})
    for path, size in ((Path(half["data_paths"]), (100, 90)), (other, (360, 120))):
        draw(half | {"image_folders": path.parent}, range(20), size)
    for path, num_tiles in ((half["data_paths"], 1), (other, 4)):
        dataset = MultimodalDataset(half["base"], str(path))
        tokens, tiles, _ = dataset.layout(num_workers=0)
        assert tiles[0] == dataset[0]["num_tiles"] == num_tiles and tokens[0] == len(dataset[0]["labels"])


def loader_of(settings, packed, num_workers, **more):
    """The loader of a run that starts now, in packs or in groups of three."""
    sampler = start(settings, **more)
    if packed:
        batches = PackBatchSampler(sampler, max_tokens=200)
        return DataLoader(sampler.dataset, batch_sampler=batches, collate_fn=collate_packed, num_workers=num_workers)
    return DataLoader(sampler.dataset, 3, sampler=sampler, collate_fn=collate, num_workers=num_workers)


@pytest.mark.parametrize("packed, num_workers, size", [(True, 1, (360, 120)), (False, 0, (40, 40))])
def test_a_plan_that_no_longer_fits_follows_the_policy(half, packed, num_workers, size):
    draw(half, range(10, 20))
    draw(half, [7], (120, 240))  # 2 tiles and a thumbnail
    loader_of(half, packed, 0)  # measures
    draw(half, [7], size)
    found = 4 if size == (360, 120) else 1
    batches = list(loader_of(half, packed, num_workers, on_bad_sample="skip"))
    dropped = [sample for batch in batches for sample in batch.get("dropped", ())]
    assert [(sample["index"], sample["dropped"]) for sample in dropped] == [(7, "plan_changed")]
    assert sum(len(batch["sources"]) for batch in batches) == 19
    again = list(loader_of(half, packed, num_workers, on_bad_sample="skip"))  # the next start has measured it
    assert not any("dropped" in batch for batch in again)
    assert sum(int(batch["num_tiles"].sum()) for batch in again) == 19 + found
    draw(half, [7], (240, 240))
    words = rf"data.jsonl:8: \d+ tokens and 5 tiles, but \d+ tokens and {found} tiles"
    with pytest.raises((RecordError, RuntimeError), match=words):
        list(loader_of(half, packed, num_workers))
    (Path(half["image_folders"]) / "3.png").unlink()
    with pytest.raises(RecordError, match=r"data.jsonl:4: .*3.png: no such"):
        list(loader_of(half, packed, 0))
