"""What was wrong with records counts only while it is: each start looks again, and loses none in silence."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from xtuner_plugins.datasets import MultimodalDataset, PackBatchSampler, PlanSampler, RecordError, collate_packed


@pytest.fixture
def half(data_base, write_data, make_image, qa):
    """Settings of 20 records, of which those with 10.png to 19.png miss their images."""
    for number in range(10):
        folder = make_image(f"{number}.png", 100, 90)
    path = write_data([qa(f"{number}?", "Yes.", image=f"{number}.png") for number in range(20)])
    return dict(base=data_base, data_paths=path, image_folders=folder)


def draw(folder, numbers, size=(100, 90)):
    for number in numbers:
        Image.new("RGB", size).save(Path(folder, f"{number}.png"))


def test_skip_trains_what_has_been_mended_and_says_why_the_rest_is_left_out(half):
    gone = list(range(10, 20))
    for mended in ((), (13, 17)):
        draw(half["image_folders"], mended)
        gone = [index for index in gone if index not in mended]
        sampler = PlanSampler(MultimodalDataset(**half, on_bad_sample="skip"), seed=0)
        assert sorted(sampler.order(0)) == [index for index in range(20) if index not in gone]
        entries = [(entry["index"], entry["dropped"]) for entry in sampler.left_out()]
        assert entries == [(index, "image_missing") for index in gone]
        words = f"data: {20 - len(gone)} of 20 samples will train; left out: {len(gone)} image_missing"
        assert words == sampler.describe_data()


def test_files_of_one_content_have_places_and_images_of_their_own(half, tmp_path):
    """They share what was measured; without an image folder names are looked up where the file lies."""
    (tmp_path / "elsewhere").mkdir()
    other = shutil.copy(half["data_paths"], tmp_path / "elsewhere/data.jsonl")
    MultimodalDataset(**half).lengths(0, num_workers=0)
    with pytest.raises(RecordError, match=f"{other}:11: "):
        PlanSampler(MultimodalDataset(**half | {"data_paths": other}), seed=0)
    for path, size, num_tiles in ((half["data_paths"], (100, 90), 1), (other, (360, 120), 4)):
        draw(Path(path).parent, range(20), size)
        dataset = MultimodalDataset(half["base"], str(path))
        tokens, tiles, _ = dataset.layout(num_workers=0)
        assert tiles[0] == dataset[0]["num_tiles"] == num_tiles and tokens[0] == len(dataset[0]["labels"])


def test_a_plan_that_no_longer_fits_follows_the_policy(half):
    def batches(**more):
        """Of a run that starts now, read by a worker."""
        sampler = PlanSampler(MultimodalDataset(**half, **more), seed=0, group_by="length")
        packs = dict(batch_sampler=PackBatchSampler(sampler, max_tokens=200), collate_fn=collate_packed)
        return list(DataLoader(sampler.dataset, num_workers=1, **packs))

    folder = half["image_folders"]
    draw(folder, range(20))
    batches()  # measures
    draw(folder, [7], (360, 120))
    found = batches(on_bad_sample="skip")
    dropped = [sample for batch in found for sample in batch.get("dropped", ())]
    assert [(sample["index"], sample["dropped"]) for sample in dropped] == [(7, "plan_changed")]
    assert sum(len(batch["sources"]) for batch in found) == 19
    again = batches(on_bad_sample="skip")  # the next start has measured it
    assert not any("dropped" in batch for batch in again)
    assert sum(int(batch["num_tiles"].sum()) for batch in again) == 19 + 4
    draw(folder, [7], (240, 240))
    with pytest.raises(RuntimeError, match=r"data.jsonl:8: \d+ tokens and 5 tiles, but \d+ tokens and 4 tiles"):
        batches()
