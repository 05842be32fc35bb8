"""A config's own records where they can be trained on, else toy records that say why."""

import json

import pytest

from xtuner_plugins.selftest.samples import take_samples, toy_samples
from xtuner_plugins.toy.small_data import write_dataset


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "data", 12)


def settings(*files, **others):
    return {
        "type": "xtuner_plugins.datasets.MultimodalDataset",
        "base": "nowhere",
        "data_paths": [str(path) for path, _ in files],
        "image_folders": [str(folder) for _, folder in files],
        "repeat_times": [0.5] * len(files),
        **others,
    }


def test_usable_records_of_every_file_are_taken(toy_base, data, tmp_path):
    path, images = data
    lines = path.read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(['{"image": "gone.png", "conversations": []}', *lines[:4]]) + "\n")
    (tmp_path / "work").mkdir()
    found = take_samples(settings(data, (broken, images)), toy_base, tmp_path / "work", 8)
    assert not found.is_toy and "the first 8 usable records of" in found.description and len(found.lengths) == 8
    taken = [[json.loads(line) for line in open(name)] for name in found.settings["data_paths"]]
    assert [len(records) for records in taken] == [4, 4] and taken[1] == [json.loads(line) for line in lines[:4]]
    assert all(tokens > 10 for tokens, _ in found.lengths) and max(tiles for _, tiles in found.lengths) > 1


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda path: path.unlink(), "isn't there"),
        (lambda path: path.write_text('{"a": 1}\n'), "no record of the config's can be trained on"),
        (lambda path: path.write_text("[{"), "can't be read"),
    ],
)
def test_otherwise_toy_records_with_a_reason(toy_base, data, tmp_path, change, why):
    change(data[0])
    (tmp_path / "work").mkdir()
    found = take_samples(settings(data), toy_base, tmp_path / "work", 8)
    assert found.is_toy and why in found.description and len(found.lengths) == 8


def test_alternating_toy_records(toy_base, tmp_path):
    found = toy_samples(settings(("a", "b")), toy_base, tmp_path, 4, why="x", alternating=True)
    assert [tiles > 0 for _, tiles in found.lengths] == [True, False, True, False]
