"""Several files in one mixture: what each contributes, and settings that can't be."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.mixture import pick_records


@pytest.fixture
def mixture(data_base, write_data, qa):
    """Ten records in an array, ten in lines, three in an array."""
    records = [qa(f"{number}?", f"{number}.") for number in range(10)]
    paths = [write_data(records, "a.json"), write_data(records, "b.jsonl"), write_data(records[:3], "c.json")]

    def build(**settings):
        return MultimodalDataset(**{"base": str(data_base), "data_paths": paths} | settings)

    return build


def test_a_file_contributes_what_it_should(mixture):
    """Twice everything, a half, three times everything and a half of it once more; the same each time."""
    first, again = (mixture(repeat_times=[2, 0.5, 3.5]) for _ in range(2))
    places = [first.locate(index) for index in range(len(first))]
    assert places == [again.locate(index) for index in range(len(again))]
    counts = [Counter(row for number, row in places if number == wanted) for wanted in range(3)]
    assert [sorted(count.values()) for count in counts] == [[2] * 10, [1] * 5, [3, 4, 4]]
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
    assert [source.name for source in mixture(data_paths=paths).sources] == list(map(str, paths))
    named = mixture(data_paths=paths, dataset_settings=[{"name": "photos"}, {"name": "photos"}])
    assert [source.name for source in named.sources] == ["photos"] * 2


def per_file(**own):
    return dict(dataset_settings=[None, own, None])


BAD = [
    (dict(data_paths=[]), "data_paths is empty"),
    (dict(data_paths=[None]), "data_paths holds None"),
    (dict(data_paths=["a.json", ["b.jsonl"]]), "data_paths holds .'b.jsonl'"),
    (dict(image_folders=["nowhere", None, None]), "nowhere.*isn't there"),
    (dict(image_folders=[None, 3, None]), "image_folders holds 3"),
    (dict(image_folders=["."]), "image_folders has 1 entries for 3"),
    (dict(repeat_times=[1]), "repeat_times has 1 entries"),
    *((dict(repeat_times=[1, each, 1]), f"repeat_times holds {each!r}") for each in (0, -2, "2", True, math.nan)),
    (dict(repeat_times="2"), "repeat_times holds '2'"),
    *(
        (dict(dataset_settings=[each, None, None]), f"settings of '.*a.json' is {each!r}; give a dict")
        for each in (3, "x")
    ),
    (dict(dataset_settings=[{}]), "has 1 entries"),
    (per_file(max_tile=3), "max_tile"),
    (per_file(max_tiles="12"), "max_tiles='12' .dataset_settings of .*b.jsonl"),
    (per_file(use_thumbnail=False), "'use_thumbnail': .*give a dict with some of name"),
    (per_file(name=3), "name=3 .*give a text"),
    (per_file(loss_weight="1"), "loss_weight='1'"),
    (per_file(loss_weight=0), "loss_weight"),
    (dict(max_tiles=0), "max_tiles=0"),
    (dict(max_tiles="12"), "max_tiles='12' can't be used; give a whole number"),
    (dict(template="none"), "none.*internvl2_5"),
    (dict(template=3), "template=3"),
    (dict(max_length=0), "max_length=0"),
    (dict(base="nowhere"), "nowhere.*isn't there"),
    (dict(base=None), "base=None can't be used"),
    (dict(fast_decoding="gpu"), "fast_decoding='gpu' is unknown; it is one of False, True, auto$"),
    (dict(on_bad_sample="ignore"), "on_bad_sample"),
    (dict(num_frames=0), "num_frames"),
    (dict(num_frames=2.5), "num_frames=2.5"),
    (dict(loss_reduction="mean"), "loss_reduction='mean' is unknown.*token, square, sample"),
]


def test_settings_that_can_not_be(mixture, tmp_path):
    for settings, words in BAD:
        with pytest.raises(SettingError, match=words):
            mixture(**settings)
    with pytest.raises(SettingError) as caught:  # all unusable files at once
        mixture(data_paths=[tmp_path / "x.json", tmp_path / "a.json", tmp_path], image_folders=None)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path}/x.json:1: ") and second.startswith(f"{tmp_path}: holds no shards")
