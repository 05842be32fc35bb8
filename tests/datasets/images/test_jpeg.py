"""JPEG artifacts on training tiles: each epoch has its own, every process and every resume the same."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from xtuner_plugins.datasets import MultimodalDataset, PlanSampler, SettingError
from xtuner_plugins.datasets.images.jpeg import check_quality, degrade


def test_a_tile_is_as_pillow_writes_and_reads_it_with_a_quality_of_the_range(monkeypatch):
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 56, 56), np.uint8))
    for tile, whole in zip(degrade(tiles, (80, 80), np.random.default_rng(0)), tiles, strict=True):
        Image.fromarray(whole.permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "JPEG", quality=80)
        assert torch.equal(tile, torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    asked = []
    monkeypatch.setattr(functional, "jpeg", lambda tile, quality: asked.append(quality) or tile)
    degrade(torch.zeros(400, 3, 8, 8, dtype=torch.uint8), (75, 100), np.random.default_rng(0))
    assert set(asked) == set(range(75, 101))
    for value in (75, (90, 75), (0, 75), (75, 101), (75.0, 100), (75,), "75"):
        with pytest.raises(SettingError, match="give .lowest, highest. from 1 to 100"):
            check_quality(value)


@pytest.fixture
def settings(data_base, write_data, make_image, qa):
    records = [qa(f"<image>\nWhere is {number}?", "Here.", image="a.png") for number in range(12)] + [qa()]
    folders = [make_image("a.png", 360, 120)]
    return dict(base=str(data_base), data_paths=[write_data(records)], image_folders=folders)


def test_every_epoch_differs_and_every_process_repeats(settings):
    dataset, plain = MultimodalDataset(**settings, jpeg_quality=[60, 90]), MultimodalDataset(**settings)
    sampler = PlanSampler(dataset, seed=0)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append([dataset[index]["tiles"] for index in sampler])
        loader = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=2)
        assert all(torch.equal(tiles, sample["tiles"]) for tiles, sample in zip(epochs[-1], loader, strict=True))
        for tiles, index in zip(epochs[-1], sampler, strict=True):
            assert tiles.shape == plain[index]["tiles"].shape
            assert len(tiles) == 0 or not torch.equal(tiles, plain[index]["tiles"])
    sampler.seek(1, 5)  # a resume
    assert all(torch.equal(a, dataset[index]["tiles"]) for a, index in zip(epochs[1][5:], sampler, strict=True))
    assert not torch.equal(torch.cat(epochs[0]).float().mean((1, 2, 3)), torch.cat(epochs[1]).float().mean((1, 2, 3)))


def test_files_have_their_own_and_validation_has_none(settings):
    two = {name: value * 2 if isinstance(value, list) else value for name, value in settings.items()}
    dataset = MultimodalDataset(**two, dataset_settings=[None, {"jpeg_quality": (60, 90)}])
    assert not torch.equal(dataset[0]["tiles"], dataset[13]["tiles"])
    assert torch.equal(dataset[0]["tiles"], dataset.load(1, 0)["tiles"])  # checks and measures see images as they are
    dataset.keep_images()
    assert torch.equal(dataset[0]["tiles"], dataset[13]["tiles"])
