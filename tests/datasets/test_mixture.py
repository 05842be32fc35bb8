"""Several files in one mixture: what each contributes, and settings that can't be."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.mixture import pick_records
from xtuner_plugins.datasets.plan.budget import TileBudget

# Values that a setting can't have.
WRONG = dict(max_tiles=(0, "12"), template=("none", 3), base=("nowhere", None), max_length=(0,), num_frames=(0, 2.5))
WRONG |= dict(fast_decoding=("gpu",), on_bad_sample=("ignore",), loss_reduction=("mean",))
LISTS = {"repeat_times": (0, "2", True, math.nan), "image_folders": ("none", 5), "dataset_settings": (3, {"tiles": 2})}
OF_FILE = {"name": 3, "max_tiles": "12", "loss_weight": 0, "jpeg_quality": 75, "columns": "dialog"}
COLUMNS = {"messages": 5}


@pytest.fixture
def mixture(data_base, write_data, qa):
    """Ten records in an array, ten in lines, three in an array."""
    records = [qa(f"{number}?", f"{number}.") for number in range(10)]
    paths = [write_data(records, "a.json"), write_data(records, "b.jsonl"), write_data(records[:3], "c.json")]
    return lambda **settings: MultimodalDataset(**{"base": str(data_base), "data_paths": paths} | settings)


def test_a_file_contributes_what_it_should(mixture):
    """Twice everything, a half, three times everything and a half of it once more; the same each time."""
    first, again = (mixture(repeat_times=[2, 0.5, 3.5]) for _ in range(2))
    assert first.picks[1].tolist() == [0, 1, 4, 7, 8] and first.picks[2].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2]
    assert first.budget == TileBudget(16, 4096, True) and first.num_frames == 8
    places = [first.locate(index) for index in range(len(first))]
    assert places == [again.locate(index) for index in range(len(again))]
    counts = [Counter(row for number, row in places if number == wanted) for wanted in range(3)]
    assert [sorted(count.values()) for count in counts] == [[2] * 10, [1] * 5, [3, 4, 4]]
    assert [len(pick_records(100, repeat, seed=0)) for repeat in (0.001, 0.04, 1.25, 3.999)] == [1, 4, 125, 400]
    assert len(mixture(repeat_times=2)) == len(mixture(repeat_times=[np.int64(2), np.float32(2), None])) + 3 == 46


def test_files_of_one_name_are_told_apart(mixture, tmp_path, qa):
    paths = [tmp_path / folder / "train.jsonl" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps(qa()))
    assert [source.name for source in mixture(data_paths=paths).sources] == list(map(str, paths))


def test_settings_that_can_not_be_are_named_with_their_value_and_a_remedy(mixture, tmp_path):
    wrong = [(name, {name: value}, repr(value)) for name, values in WRONG.items() for value in values]
    for name, values in LISTS.items():
        wrong += [(name, {name: [value, None, None]}, repr(value)) for value in values]
        wrong.append((name, {name: [None]}, f"{name} has 1 entries for 3 data_paths"))
    wrong += [(name, {"dataset_settings": [{name: value}, None, None]}, repr(value)) for name, value in OF_FILE.items()]
    wrong.append(("columns", {"dataset_settings": [{"columns": COLUMNS}, None, None]}, repr(COLUMNS)))
    wrong += [("data_paths", {"data_paths": paths}, "data_paths ") for paths in ([], [None], ["a.json", ["b.jsonl"]])]
    for name, settings, words in wrong:
        with pytest.raises(SettingError) as caught:
            mixture(**settings)
        error = caught.value
        assert name in f"{error.reason}: {error}" and words in str(error) and error.remedy, error
    with pytest.raises(SettingError) as caught:  # all unusable files at once
        mixture(data_paths=[tmp_path / "x.json", tmp_path / "a.json", tmp_path], image_folders=None)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path}/x.json:1: ") and second.startswith(f"{tmp_path}: holds no shards")
