"""Lengths measured in shards and merged are those that one machine measures."""

import json
import resource
import shutil

import numpy as np
import pytest

from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.plan import lengths, shards
from xtuner_plugins.datasets.plan.lengths import ARRAYS, LengthIndex
from xtuner_plugins.datasets.plan.shards import Shard, measure_shard, merge_shards


@pytest.fixture
def settings(data_base, write_data, make_image, qa, monkeypatch):
    """Two files of 53 and 8 records, some of them broken; chunks of five."""
    for module in (lengths, shards):
        monkeypatch.setattr(module, "CHUNK", 5)
    folder = make_image("a.png", 100, 90)
    make_image("b.png", 360, 120)
    records = [qa(f"Q{i}?", "A. " * (1 + i % 7), image=("a.png", "b.png", "none.png")[i % 3]) for i in range(53)]
    paths = [write_data(records, "first.jsonl"), write_data(records[:7] + [{"text": 1}], "second.jsonl")]
    return {"base": data_base, "data_paths": paths, "image_folders": folder}


@pytest.fixture
def dataset(settings, tmp_path):
    return MultimodalDataset(**settings, cache_dir=str(tmp_path / "merged"))


def measure(dataset, out, *numbers, of=3):
    for number in numbers:
        measure_shard(dataset.measurings(), Shard(number, of), out, dataset.cache_dir, num_workers=0)


def assert_same_index(dataset, local):
    for ours, theirs in zip(dataset.measurings(), local.measurings(), strict=True):
        found = [
            LengthIndex.open(lengths.Path(d.cache_dir) / t.key(d.cache_dir))
            for d, t in ((dataset, ours), (local, theirs))
        ]
        merged, single = (index.directory for index in found)
        assert merged != single
        for name in (*[f"{array}.npy" for array in ARRAYS], "complaints.jsonl"):
            assert (merged / name).read_bytes() == (single / name).read_bytes(), name
        assert found[0].reason_names == found[1].reason_names


def test_merged_shards_are_the_index_of_one_machine(settings, dataset, tmp_path, monkeypatch):
    local = MultimodalDataset(**settings, cache_dir=str(tmp_path / "local"))
    local.layout(num_workers=0)
    measure(dataset, tmp_path / "one", 1, 3)
    measure(dataset, tmp_path / "two", 2)
    done = merge_shards(dataset.measurings(), [tmp_path / "one", tmp_path / "two", tmp_path / "one"], dataset.cache_dir)
    assert done == 61
    assert_same_index(dataset, local)
    monkeypatch.setattr(lengths, "_build", None)  # nothing is measured again
    for ours, theirs in zip(dataset.layout(), local.layout(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_chunk_is_in_one_shard_and_shards_are_alike(dataset):
    tasks = dataset.measurings()
    for of in (1, 2, 3, 5, 13, 20):
        found = [Shard(number + 1, of).chunks(tasks) for number in range(of)]
        for number, task in enumerate(tasks):
            assert sorted(chunk for shard in found for chunk in shard[number]) == lengths.chunks_of(task)
        counts = [sum(map(len, shard)) for shard in found]
        assert max(counts) - min(counts) <= 1


def test_an_interrupted_shard_goes_on(dataset, tmp_path, monkeypatch):
    measure(dataset, tmp_path / "out", 1)
    (tmp_path / "out" / "shard-1-of-3.json").unlink()
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    gone = sorted((tmp_path / "out").glob("*/*.npz"))[1]
    gone.unlink()
    measured = []
    rows = lengths.Measure.rows
    monkeypatch.setattr(lengths.Measure, "rows", lambda *args: measured.append(args[1]) or rows(*args))
    measure(dataset, tmp_path / "out", 1)
    assert measured == [int(gone.stem)]
    assert gone.read_bytes() == (tmp_path / "whole" / gone.parent.name / gone.name).read_bytes()


@pytest.mark.parametrize(
    "numbers, of, words",
    [
        ((1, 3), 3, "shard 2 of 3 missing; measure"),
        ((2,), 4, "shards 1, 3, 4 of 4 missing"),
        ((), 3, "no shard in .*out; measure all of them"),
    ],
)
def test_missing_shards_are_named(dataset, tmp_path, numbers, of, words):
    measure(dataset, tmp_path / "out", *numbers, of=of)
    with pytest.raises(SettingError, match=words):
        merge_shards(dataset.measurings(), [tmp_path / "out"], dataset.cache_dir)


def test_shards_that_come_twice_or_of_two_divisions_are_refused(dataset, tmp_path):
    measure(dataset, tmp_path / "out", 1, 2, 3)
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    with pytest.raises(SettingError, match=r"shard 1/3 is there twice: .*copy.* and .*out.*; remove"):
        merge_shards(dataset.measurings(), [tmp_path / "out", tmp_path / "copy"], dataset.cache_dir)
    measure(dataset, tmp_path / "out", 1, of=2)
    with pytest.raises(SettingError, match="different divisions: 2 and 3 parts"):
        merge_shards(dataset.measurings(), [tmp_path / "out"], dataset.cache_dir)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"template": "Hermes-2"}, "another template than .*first.jsonl has here; measure it again"),
        ({"max_pixels": 10**6}, "another number of records, num_frames or max_pixels than"),
        ({"image_folders": None}, "another image folder than"),
        ({"dataset_settings": [None, {"record_sizes": True}]}, "another record_sizes than .*second.jsonl"),
        ({"data_paths": 0}, "is of 2 files, the data has 1"),
        ({"data_paths": 1}, "another content of the data, another number of records"),
    ],
)
def test_shards_of_other_data_or_settings_are_refused(settings, dataset, tmp_path, change, words):
    measure(dataset, tmp_path / "out", 1, of=1)
    paths = settings["data_paths"]
    if "data_paths" in change:
        change = {"data_paths": paths[:1] if change["data_paths"] == 0 else [paths[1], paths[1]]}
    other = MultimodalDataset(**settings | change, cache_dir=str(tmp_path / "other"))
    with pytest.raises(SettingError, match=words):
        merge_shards(other.measurings(), [tmp_path / "out"], other.cache_dir)
    assert not list((tmp_path / "other").glob("*/meta.json"))


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda part, manifest: part.unlink(), r"\d+.npz is missing since its shard was measured; copy"),
        (lambda part, manifest: part.write_bytes(part.read_bytes()[:-9]), "has changed since"),
        (lambda part, manifest: manifest.write_text(manifest.read_text()[:99]), "shard-1-of-1.json can't be read"),
        (lambda part, manifest: manifest.write_text("[]"), "can't be read"),
        (lambda part, manifest: manifest.write_text('{"chunk": 5, "files": [{"facts": 3, "parts": {}}]}'), "be read"),
        (
            lambda part, manifest: manifest.write_text(manifest.read_text().replace('"chunk": 5', '"chunk": 7')),
            "version",
        ),
    ],
)
def test_damaged_shards_are_refused(dataset, tmp_path, harm, words):
    measure(dataset, tmp_path / "out", 1, of=1)
    harm(sorted((tmp_path / "out").glob("*/*.npz"))[0], tmp_path / "out" / "shard-1-of-1.json")
    with pytest.raises(SettingError, match=words):
        merge_shards(dataset.measurings(), [tmp_path / "out"], dataset.cache_dir)


def test_the_manifest_names_no_path_to_follow(dataset, tmp_path):
    measure(dataset, tmp_path / "out", 1, of=1)
    said = json.loads((tmp_path / "out" / "shard-1-of-1.json").read_text())
    assert set(said) == {"chunk", "files"} and {key for file in said["files"] for key in file} == {"facts", "parts"}


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "1/0", "a/b", "1/3/5", "-1/3", ""])
def test_what_is_no_shard(text):
    with pytest.raises(SettingError, match="is no shard"):
        Shard.parse(text)
    assert str(Shard.parse("3/8")) == "3/8"


def test_merging_many_parts_takes_few_descriptors(dataset, monkeypatch):
    """Two million records have a thousand parts, as many as a process may open by default."""
    monkeypatch.setattr(lengths, "CHUNK", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(lengths.os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, hard))
    try:
        assert len(dataset.lengths(0, num_workers=0)) == 53
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
