"""Figures of an average sample: exact where lengths are measured, of opened samples where they aren't."""

import shutil

import pytest

from tests.engine.parallel_case import write_dataset
from xtuner_plugins.datasets import MultimodalDataset, figures
from xtuner_plugins.datasets.figures import file_figures


@pytest.fixture
def dataset(toy_base, tmp_path):
    path, images = write_dataset(tmp_path / "data")
    more, _ = write_dataset(tmp_path / "more", num_samples=8, text_only=lambda index: True)
    return MultimodalDataset(
        str(toy_base),
        [str(path), str(more)],
        [str(images), None],
        repeat_times=[1, 2],
        dataset_settings=[{"name": "with images"}, {"name": "text"}],
        max_tiles=6,
        max_length=512,
        on_bad_sample="skip",
    )


def test_measured_and_opened_samples_have_the_same_means(dataset):
    seen = file_figures(dataset)
    assert [(each.name, each.samples) for each in seen] == [("with images", 16), ("text", 16)]
    dataset.layout(num_workers=0)
    measured = file_figures(dataset)
    assert [(each.seen, each.is_measured) for each in measured] == [(16, True)] * 2
    for before, after in zip(seen, measured, strict=True):  # every sample was opened
        assert not before.is_measured
        assert (before.tokens, before.tiles, before.supervised) == (after.tokens, after.tiles, after.supervised)
    assert measured[0].tiles > 1 and measured[1].tiles == 0 and measured[1].supervised > 1


def test_few_usable_samples_and_no_longer_than_allowed(dataset, monkeypatch):
    with monkeypatch.context() as fewer:
        fewer.setattr(figures, "LOOK_AT", 6)
        assert [each.seen for each in file_figures(dataset)] == [3, 3]
        fewer.setattr(figures, "LOOK_SECONDS", -1.0)
        assert [each.seen for each in file_figures(dataset)] == [0, 0]
    shutil.rmtree(dataset.sources[0].folder.folder)
    assert [each.seen for each in file_figures(dataset)] == [4, 16]  # a quarter is text
