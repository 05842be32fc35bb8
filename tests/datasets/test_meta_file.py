"""The official code's meta file in `data_paths`."""

import json

import pytest

from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.meta_file import is_meta, list_files


@pytest.fixture
def write(tmp_path, write_data, qa):
    """write(**entries) -> the path of a meta file of a.jsonl, b.jsonl and c.jsonl beside it."""
    for name in "abc":
        write_data([qa(f"{name}{number}?") for number in range(4)], f"{name}.jsonl")

    def meta(**entries):
        found = {name: {"annotation": f"{name}.jsonl", **own} for name, own in entries.items()}
        (tmp_path / "meta.json").write_text(json.dumps(found))
        return str(tmp_path / "meta.json")

    return meta


def test_a_meta_file_is_the_four_settings(data_base, write, tmp_path, monkeypatch):
    meta = write(a={"root": "", "length": 4}, b={"data_augment": True, "root": "s3://bucket"}, c={"repeat_time": 0})
    expected = [
        ("x.jsonl", "x", 3, None),
        (f"{tmp_path}/a.jsonl", None, 1, {"name": "a"}),
        (f"{tmp_path}/b.jsonl", "s3://bucket", 1, {"name": "b", "jpeg_quality": (75, 100)}),
    ]
    assert list_files(["x.jsonl", meta], ["x", None], [3, None]) == expected
    for name, value in {"image_folders": "images", "repeat_times": [2], "dataset_settings": [{}]}.items():
        with pytest.raises(SettingError, match=f"{name} is given for the meta file"):
            list_files(meta, **{name: value})
    write(a={"repeat_time": 2, "max_dynamic_patch": 1, "root": "."}, b={"repeat_time": 0.5})
    monkeypatch.chdir(tmp_path)  # relative to the working directory, as in the official code
    assert list_files("meta.json")[0] == ("a.jsonl", ".", 2, {"name": "a", "max_tiles": 1})
    assert len(MultimodalDataset(data_base, "meta.json")) == 10


NO_META = [
    '{"info": {"length": 3}, "messages": [{"role": "user", "content": "Hi"}]}',
    '{"meta": {"annotation": "x"}, "conversations": []}',
    *('{"a": 1, "annotation": {}}', '{"a": {"root": ""}, "b": {}}', '{"a": {"root": ""'),
]
BAD = [
    ('{"a": {"data_augment": "no", "annotation": "a.jsonl"}}', "data_augment is 'no'; give true or false"),
    ('{"a": {"annotation": "a.jsonl", "max_tiles": 3}}', "has 'max_tiles', which isn't read.*known are root"),
    ('{"a": {"annotation": "none.jsonl"}}', "annotation 'none.jsonl' isn't there"),
    ('{"a": {"annotation": ""}}', "annotation '' isn't there"),
    ('{"a": {"annotation": "a.jsonl\\u0000"}}', r"annotation 'a.jsonl\\x00' isn't there"),
    ('{"a": {"annotation": "a.jsonl", "root": "a\\u0000"}}', r"image folder '.*a\\x00' isn't there"),
    ('{"a": {"annotation": "a.jsonl", "root": 3}}', "root is 3; give a path"),
    ('{"a": {"annotation": "a.jsonl", "repeat_time": -1}}', "repeat_time is -1"),
    ('{"a": {"annotation": "a.jsonl", "repeat_time": 0}}', "every repeat_time is 0"),
    ('{"a": {"annotation": "a.jsonl"}', "meta.json is no meta file: not JSON"),
    ('{"a": {"annotation": "a.jsonl", "root": ""}, "b": []}', "b is no object"),
    ('{"a": {"annotation": "a.jsonl", "root": ""}, "b": {"root": ""}}', "b is no object"),
]


def test_what_is_no_meta_file_and_what_cannot_be_followed(data_base, write, tmp_path):
    path = tmp_path / "meta.json"
    assert not is_meta(tmp_path) and not is_meta(path)
    for text in NO_META:
        path.write_text(text)
        assert not is_meta(path), text
    for text, words in BAD:
        path.write_text(text)
        with pytest.raises(SettingError, match=words):
            MultimodalDataset(data_base, path)
