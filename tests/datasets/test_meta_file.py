"""The official code's meta file in `data_paths`."""

import json
import logging

import pytest

from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.meta_file import expand_metas, is_meta


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


def samples(dataset):
    return [
        [
            sample[key] if key == "dataset" else sample[key].tolist()
            for key in ("input_ids", "labels", "tiles", "dataset")
        ]
        for sample in map(dataset.__getitem__, range(len(dataset)))
    ]


def test_a_meta_file_is_the_four_settings(data_base, files, tmp_path, monkeypatch):
    meta = files(a={"repeat_time": 2, "max_dynamic_patch": 2}, b={"repeat_time": 0.5})
    written = MultimodalDataset(
        data_base,
        [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")],
        str(tmp_path / "images"),
        [2, 0.5],
        [{"name": "a", "max_tiles": 2}, {"name": "b"}],
    )
    named = MultimodalDataset(data_base, meta)
    assert len(named) == 10 and samples(named) == samples(written)
    monkeypatch.chdir(tmp_path)  # relative to the working directory, as in the official code
    assert samples(MultimodalDataset(data_base, ["meta.json"])) == samples(named)


def test_between_other_files_and_in_one_line(files, tmp_path):
    meta = files(None, a={"root": ""}, b={"data_augment": True})
    paths, folders, repeats, settings = expand_metas(["x.jsonl", meta], ["x", None], [3, None])
    assert paths == ["x.jsonl", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert folders == ["x", None, str(tmp_path / "images")]
    assert repeats == [3, 1, 1] and settings == [
        None,
        {"name": "a"},
        {"name": "b", "jpeg_quality": (75, 100)},
    ]
    assert expand_metas("x.jsonl", "x") == ("x.jsonl", "x", None, None)


def test_what_is_no_meta_file(tmp_path, write_data, qa):
    for record in (qa(image="a.png"), {"meta": {"annotation": "x"}, **qa()}, {"a": 1, "annotation": {}}):
        assert not is_meta(write_data([record]))
    assert not is_meta(tmp_path) and not is_meta(tmp_path / "none") and not is_meta(3)
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


BAD = {
    "augment_text": ({"data_augment": "no"}, "data_augment is 'no'; give true or false"),
    "unknown": ({"max_tiles": 3}, "has 'max_tiles', which isn't read.*known are root"),
    "root": ({"root": None}, "root is None"),
    "annotation": ({"annotation": 3}, "annotation is 3"),
    "nul": ({"annotation": "a\0"}, "annotation is"),
    "missing": ({"annotation": "none.jsonl"}, "annotation 'none.jsonl' isn't there"),
    "folder": ({"root": "nowhere"}, "image folder 'nowhere' isn't there"),
    "repeat": ({"repeat_time": "2"}, "repeat_time is '2'"),
    "negative": ({"repeat_time": -1}, "repeat_time is -1"),
    "tiles": ({"max_dynamic_patch": 0}, "max_dynamic_patch is 0"),
    "zero": ({"repeat_time": 0}, "every repeat_time is 0"),
}


@pytest.mark.parametrize("own, words", BAD.values(), ids=BAD)
def test_what_cannot_be_followed_is_refused(data_base, files, own, words, tmp_path):
    with pytest.raises(SettingError, match=words):
        MultimodalDataset(data_base, files(a=own))


def test_settings_beside_a_meta_file_and_broken_ones_are_refused(files, tmp_path):
    meta = files(a={})
    for settings in ({"image_folders": "images"}, {"repeat_times": [2]}, {"dataset_settings": [{"name": "x"}]}):
        with pytest.raises(SettingError, match=f"{next(iter(settings))} is given for the meta file"):
            expand_metas(meta, **settings)
    broken = tmp_path / "broken.json"
    for text, words in {
        '{"a": {"annotation": "a.jsonl"}': "broken.json is no meta file: not JSON",
        '{"a": {"annotation": "a.jsonl"}, "a": {"annotation": "b.jsonl"}}': "the key 'a' occurs twice",
        '{"a": {"annotation": "a.jsonl", "root": ""}, "b": []}': "b is no object",
    }.items():
        broken.write_text(text)
        (tmp_path / "a.jsonl").touch()
        with pytest.raises(SettingError, match=words):
            expand_metas(str(broken))


def test_a_data_set_of_repeat_time_0_is_left_out_and_said(files, caplog):
    with caplog.at_level(logging.WARNING):
        paths, *_ = expand_metas(files(a={"repeat_time": 0}, b={}))
    assert len(paths) == 1


def test_the_checker_takes_a_meta_file(files, run_tool):
    done = run_tool("tools/check_data.py", files(a={}, b={}), "--workers", 0)
    assert done.returncode == 0 and "all 8 records can be trained on" in done.stdout, done.stdout + done.stderr


def test_addresses_stay_as_they_are(tmp_path):
    entry = {"root": "s3://bucket/images", "annotation": "s3://bucket/a.jsonl"}
    (tmp_path / "meta.json").write_text(json.dumps({"mine": entry}))
    paths, folders, *_ = expand_metas(str(tmp_path / "meta.json"))
    assert (paths, folders) == (["s3://bucket/a.jsonl"], ["s3://bucket/images"])
