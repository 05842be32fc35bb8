"""JPEG artifacts on training tiles: each epoch has its own, every process and every resume the same."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from xtuner_plugins.datasets import MultimodalDataset, PlanSampler, SettingError
from xtuner_plugins.datasets.images.tiles import check_quality, degrade


def test_a_tile_is_as_pillow_writes_and_reads_it_with_a_quality_of_the_range():
    tile = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 56, 56), np.uint8))
    by_quality = {}
    for quality in range(75, 78):
        Image.fromarray(tile.permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "JPEG", quality=quality)
        by_quality[np.array(Image.open(file)).transpose(2, 0, 1).tobytes()] = quality
    found = degrade(tile.expand(40, 3, 56, 56), (75, 77), np.random.default_rng(0))
    assert {by_quality[each.numpy().tobytes()] for each in found} == {75, 76, 77}
    assert check_quality([1, 100]) == (1, 100) and check_quality(None) is None
    for value in (75, (90, 75), (0, 75), (75, 101), (75.0, 100), (75,), "75"):
        with pytest.raises(SettingError, match="give .lowest, highest. from 1 to 100"):
            check_quality(value)


def test_every_epoch_differs_and_every_process_repeats(data_base, write_data, make_image, qa):
    """The first file's tiles are degraded, the second's aren't; checks and validation see images as they are."""
    data = write_data([qa(f"<image>\nWhere is {number}?", image="a.png") for number in range(6)])
    settings = [{"jpeg_quality": [60, 90]}, None]
    dataset = MultimodalDataset(str(data_base), [data] * 2, make_image("a.png", 360, 120), dataset_settings=settings)
    sampler, plain, epochs = PlanSampler(dataset, seed=0), dataset.load(1, 0)["tiles"], []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append([dataset[index] for index in sampler])
        for here, there in zip(epochs[-1], DataLoader(dataset, None, sampler=sampler, num_workers=2), strict=True):
            assert torch.equal(here["tiles"], there["tiles"])
            assert torch.equal(here["tiles"], plain) == (here["index"] >= 6)
    sampler.seek(1, 5)  # a resume
    for before, index in zip(epochs[1][5:], sampler, strict=True):
        assert torch.equal(before["tiles"], dataset[index]["tiles"])
    first, second = ({each["index"]: each["tiles"] for each in samples} for samples in epochs)
    assert not any(torch.equal(first[index], second[index]) for index in range(6))
    dataset.keep_images()
    assert torch.equal(dataset[0]["tiles"], plain) and torch.equal(dataset.load(0, 0)["tiles"], plain)
