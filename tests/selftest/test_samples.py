"""A config's own records where they can be trained on, else toy records that say why."""

import json

import pytest

from tests.datasets.store_servers import ObjectServer
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


@pytest.mark.parametrize("backend", [None, {"backend": "local"}])
def test_images_in_stores_become_files(toy_base, data, tmp_path, backend):
    """The self-test's own runs then need neither the store nor its options."""
    path, images = data
    server = ObjectServer()
    for file in images.rglob("*.*"):
        server.objects[f"images/{file.relative_to(images)}"] = file.read_bytes()
    folder = images if backend else f"{server.url}/images"
    (tmp_path / "work").mkdir()
    found = take_samples(settings((path, folder), backend_args=backend), toy_base, tmp_path / "work", 4)
    server.stop()
    assert not found.is_toy and found.settings["dataset_settings"] == [None] and len(found.lengths) == 4
    for line in open(found.settings["data_paths"][0]):
        assert "image" not in json.loads(line) or str(tmp_path / "work") in json.loads(line)["image"]


def test_alternating_toy_records(toy_base, tmp_path):
    found = toy_samples(settings(("a", "b")), toy_base, tmp_path, 4, why="x", alternating=True)
    assert [tiles > 0 for _, tiles in found.lengths] == [True, False, True, False]


def test_images_in_rows_and_samples_become_files(toy_base, data, tmp_path):
    from tests.datasets.source_kinds import write_parquet, write_webdataset

    path, images = data
    records = [json.loads(line) for line in path.read_text().splitlines()][:4]
    (tmp_path / "work").mkdir()
    files = [write(records, images, tmp_path)["data_paths"] for write in (write_parquet, write_webdataset)]
    found = take_samples(
        settings(*((file, None) for file in files), image_folders=None), toy_base, tmp_path / "work", 8
    )
    assert not found.is_toy and len(found.lengths) == 8, found.description
    assert found.lengths[::2] == found.lengths[1::2]
    assert found.settings["image_folders"] == [None, None]
    for name in found.settings["data_paths"]:
        for line, record in zip(open(name), records, strict=True):
            taken = json.loads(line)
            names = taken.get("image") or taken.get("images") or []
            kept = [names] if isinstance(names, str) else names
            assert [open(each, "rb").read() for each in kept] == [
                (images / name).read_bytes() for name in ([record["image"]] if "image" in record else [])
            ]
