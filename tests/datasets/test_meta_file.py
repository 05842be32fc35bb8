"""The official code's meta file in `data_paths`."""

import json

import pytest

from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.meta_file import is_meta, list_files


@pytest.fixture
def files(tmp_path, write_data, make_image, qa):
    """Two annotation files in tmp_path with their folder; meta(**entries) writes a meta file of them."""
    for name in "ab":
        make_image(f"{name}.png", 360, 120)
        write_data([qa(f"{name}{number}?", image=f"{name}.png") for number in range(4)], f"{name}.jsonl")

    def meta(indent=1, **entries):
        path = tmp_path / "meta.json"
        path.write_text(json.dumps({name: {**entry(name), **own} for name, own in entries.items()}, indent=indent))
        return str(path)

    def entry(name):
        return {"root": "images/", "annotation": f"{name}.jsonl", "data_augment": False, "repeat_time": 1, "length": 4}

    return meta


def test_a_meta_file_is_the_four_settings(data_base, files, tmp_path, monkeypatch):
    def samples(dataset):
        keys = ("input_ids", "labels", "tiles")
        return [
            [sample["dataset"], *(sample[key].tolist() for key in keys)]
            for sample in map(dataset.__getitem__, range(10))
        ]

    meta = files(a={"repeat_time": 2, "max_dynamic_patch": 2}, b={"repeat_time": 0.5})
    paths, settings = [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"], [{"name": "a", "max_tiles": 2}, {"name": "b"}]
    written = MultimodalDataset(data_base, paths, f"{tmp_path}/images", [2, 0.5], settings)
    named = MultimodalDataset(data_base, meta)
    assert len(named) == 10 and samples(named) == samples(written)
    monkeypatch.chdir(tmp_path)  # relative to the working directory, as in the official code
    assert samples(MultimodalDataset(data_base, ["meta.json"])) == samples(named)


def test_between_other_files_and_in_one_line(files, tmp_path):
    meta = files(None, a={"root": ""}, b={"data_augment": True, "root": "s3://bucket/images"})
    assert list_files(["x.jsonl", meta], ["x", None], [3, None]) == [
        ("x.jsonl", "x", 3, None),
        (f"{tmp_path}/a.jsonl", None, 1, {"name": "a"}),
        (f"{tmp_path}/b.jsonl", "s3://bucket/images", 1, {"name": "b", "jpeg_quality": (75, 100)}),
    ]


def test_what_is_no_meta_file(tmp_path, write_data, qa):
    for record in (qa(image="a.png"), {"meta": {"annotation": "x"}, **qa()}, {"a": 1, "annotation": {}}):
        assert not is_meta(write_data([record]))
    assert not is_meta(tmp_path) and not is_meta(tmp_path / "none")
    for text in (
        '{"info": {"length": 3}, "messages": [{"role": "user", "content": "Hi"}]}',
        '{"a": {"root": ""}, "b": {}}',
        '{"a": {"root": ""}, "b": 3}',
        '{"a": {"root": ""}}\n{"a": {"root": ""}}',
        '{"a": {"rote": ""}}',
        '{"a": {"root": ""',
    ):
        (tmp_path / "other.json").write_text(text)
        assert not is_meta(tmp_path / "other.json"), text


BAD = [
    ({"data_augment": "no"}, "data_augment is 'no'; give true or false"),
    ({"max_tiles": 3}, "has 'max_tiles', which isn't read.*known are root"),
    ({"root": None}, "root is None"),
    ({"annotation": 3}, "annotation is 3"),
    ({"annotation": "a\0"}, "annotation is"),
    ({"annotation": "none.jsonl"}, "annotation 'none.jsonl' isn't there"),
    ({"root": "nowhere"}, "image folder 'nowhere' isn't there"),
    ({"repeat_time": "2"}, "repeat_time is '2'"),
    ({"repeat_time": -1}, "repeat_time is -1"),
    ({"max_dynamic_patch": 0}, "max_dynamic_patch is 0"),
    ({"repeat_time": 0}, "every repeat_time is 0"),
]


def test_what_cannot_be_followed_is_refused(data_base, files):
    for own, words in BAD:
        with pytest.raises(SettingError, match=words):
            MultimodalDataset(data_base, files(a=own))


def test_settings_beside_a_meta_file_and_broken_ones_are_refused(files, tmp_path):
    meta = files(a={})
    for settings in ({"image_folders": "images"}, {"repeat_times": [2]}, {"dataset_settings": [{"name": "x"}]}):
        with pytest.raises(SettingError, match=f"{next(iter(settings))} is given for the meta file"):
            list_files(meta, **settings)
    broken = tmp_path / "broken.json"
    for text, words in {
        '{"a": {"annotation": "a.jsonl"}': "broken.json is no meta file: not JSON",
        '{"a": {"annotation": "a.jsonl"}, "a": {"annotation": "b.jsonl"}}': "the key 'a' occurs twice",
        '{"a": {"annotation": "a.jsonl", "root": ""}, "b": []}': "b is no object",
    }.items():
        broken.write_text(text)
        (tmp_path / "a.jsonl").touch()
        with pytest.raises(SettingError, match=words):
            list_files(str(broken))


def test_a_data_set_of_repeat_time_0_is_left_out(files):
    assert [entry.dataset_settings["name"] for entry in list_files(files(a={"repeat_time": 0}, b={}))] == ["b"]


def test_the_checker_takes_a_meta_file(files, run_tool):
    done = run_tool("tools/check_data.py", files(a={}, b={}), "--workers", 0)
    assert done.returncode == 0 and "all 8 records can be trained on" in done.stdout, done.stdout + done.stderr
