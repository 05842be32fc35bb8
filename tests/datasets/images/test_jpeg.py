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


def test_every_epoch_differs_and_every_process_repeats(data_base, write_data, make_image, qa):
    """The first file's tiles are degraded, the second's aren't; checks and validation see images as they are."""
    records = [qa(f"<image>\nWhere is {number}?", "Here.", image="a.png") for number in range(6)]
    data, folder = [write_data(records), write_data([*records, qa()], "plain.jsonl")], make_image("a.png", 360, 120)
    dataset = MultimodalDataset(str(data_base), data, folder, dataset_settings=[{"jpeg_quality": [60, 90]}, None])
    sampler, plain, epochs = PlanSampler(dataset, seed=0), dataset.load(1, 0)["tiles"], []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append([dataset[index] for index in sampler])
        loader = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=2)
        for here, there in zip(epochs[-1], loader, strict=True):
            assert torch.equal(here["tiles"], there["tiles"])
            assert torch.equal(here["tiles"], plain[: here["num_tiles"]]) == (here["index"] >= 6)
    sampler.seek(1, 5)  # a resume
    resumed = [dataset[index] for index in sampler]
    assert all(torch.equal(a["tiles"], b["tiles"]) for a, b in zip(epochs[1][5:], resumed, strict=True))
    first, second = ({each["index"]: each["tiles"] for each in samples} for samples in epochs)
    assert not any(torch.equal(first[index], second[index]) for index in range(6))
    assert torch.equal(dataset.load(0, 0)["tiles"], plain)
    dataset.keep_images()
    assert all(torch.equal(dataset[index]["tiles"], plain) for index in range(6))
