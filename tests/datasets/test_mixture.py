"""Several files in one mixture: what each contributes, and settings that can't be."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.mixture import pick_records


@pytest.fixture
def mixture(data_base, tmp_path, qa):
    """Ten records in an array, ten in lines, three in an array."""
    records = [qa(f"{number}?", f"{number}.") for number in range(10)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "c.json").write_text(json.dumps(records[:3]))
    paths = [str(tmp_path / name) for name in ("a.json", "b.jsonl", "c.json")]

    def build(**settings):
        return MultimodalDataset(**{"base": str(data_base), "data_paths": paths} | settings)

    return build


def test_fractions(mixture):
    """Twice everything, a half, three times everything and a half of it once more."""
    dataset = mixture(repeat_times=[2, 0.5, 3.5])
    counts = [Counter(), Counter(), Counter()]
    for index in range(len(dataset)):
        number, row = dataset.locate(index)
        counts[number][row] += 1
    assert [sorted(count.values()) for count in counts] == [[2] * 10, [1] * 5, [3, 4, 4]]
    places = [dataset.locate(index) for index in range(len(dataset))]
    again = mixture(repeat_times=[2, 0.5, 3.5])
    assert places == [again.locate(index) for index in range(len(again))]


def test_a_file_contributes_what_it_should(mixture):
    for repeat in (0.001, 0.04, 0.5, 1, 1.25, 3.999):
        picked = pick_records(100, repeat, seed=0)
        assert len(picked) == max(1, round(100 * repeat)) and picked.dtype == np.int32
        assert max(Counter(picked.tolist()).values()) <= math.ceil(repeat)
    assert len(mixture(repeat_times=2)) == len(mixture(repeat_times=[np.int64(2), np.float32(2), None])) + 3 == 46


def test_files_of_one_name_are_told_apart(mixture, tmp_path, qa):
    paths = [tmp_path / folder / "train.jsonl" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps(qa()))
    names = [source.name for source in mixture(data_paths=paths).sources]
    assert names == [str(path) for path in paths]
    named = mixture(data_paths=paths, dataset_settings=[{"name": "photos"}, {"name": "photos"}])
    assert [source.name for source in named.sources] == ["photos"] * 2


BAD = [
    (dict(repeat_times=[1, True, 1]), "repeat_times holds True"),
    (dict(repeat_times=[1, math.nan, 1]), "repeat_times holds nan"),
    (dict(repeat_times="2"), "repeat_times holds '2'"),
    (dict(dataset_settings=[3, None, None]), "dataset_settings of '.*a.json' is 3; give a dict"),
    (dict(dataset_settings=["x", None, None]), "dataset_settings of '.*a.json' is 'x'; give a dict"),
    (dict(dataset_settings=[None, {"max_tiles": "12"}, None]), "max_tiles='12' .dataset_settings of .*b.jsonl"),
    (
        dict(dataset_settings=[{"use_thumbnail": False}, None, None]),
        "'use_thumbnail': .*give a dict with some of name",
    ),
    (dict(dataset_settings=[{"name": 3}, None, None]), "name=3 .*give a text"),
    (dict(dataset_settings=[{"loss_weight": "1"}, None, None]), "loss_weight='1'"),
    (dict(max_tiles="12"), "max_tiles='12' can't be used; give a whole number"),
    (dict(template=3), "template=3"),
    (dict(image_folders=[None, 3, None]), "image_folders holds 3"),
    (dict(data_paths=[None]), "data_paths holds None"),
    (dict(data_paths=["a.json", ["b.jsonl"]]), "data_paths holds .'b.jsonl'"),
    (dict(num_frames=2.5), "num_frames=2.5"),
]


def test_settings_that_can_not_be(mixture):
    for settings, words in BAD:
        with pytest.raises(SettingError, match=words):
            mixture(**settings)


def test_all_unusable_files_are_named_at_once(mixture, tmp_path):
    with pytest.raises(SettingError) as caught:
        mixture(data_paths=[tmp_path / "x.json", tmp_path / "a.json", tmp_path], image_folders=None)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path}/x.json:1: ") and second.startswith(f"{tmp_path}: holds no shards")
