"""Tables and tar shards: rows of every layout as records, copies, and what can't be read."""

import json
import os
import shutil
from types import SimpleNamespace

import datasets
import pytest

from tests.datasets.source_kinds import write_table, write_tar
from xtuner_plugins.datasets.records import tables
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.errors import RecordError, SettingError, SourceError

TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
TALK = {"conversations": TURNS}
LAYOUTS = [
    ({"image": b"x", "conversations": TURNS}, [b"x"]),
    ({"image": {"bytes": b"x", "path": "a.jpg"}, "messages": TURNS}, [b"x"]),
    ({"images": [{"bytes": None, "path": "a.jpg"}], "conversations": TURNS, "id": None}, ["a.jpg"]),
    ({"image": "a.jpg", "conversations": json.dumps(TURNS)}, ["a.jpg"]),
    ({"texts": [{"user": "Q", "assistant": "A"}], "images": [b"x", b"y"]}, [b"x", b"y"]),
]


def images_of(record):
    """Bytes or names of the images of a record."""
    return [getattr(medium.name, "data", medium.name) for medium in parse_record(record, "f:1").media]


def test_layouts_of_rows(tmp_path, monkeypatch):
    for in_place in (32 << 20, 0):
        monkeypatch.setattr(tables, "IN_PLACE", in_place)
        for row, expected in LAYOUTS:
            records = open_records(path := write_table([row], tmp_path / "a.parquet"))
            assert (records.source(0), len(records)) == (f"{path}:1", 1)
            assert images_of(records.parse(0)) == expected and None not in records.parse(0).values()
            assert isinstance(records.rows, tables.ParquetRows) == bool(in_place)
    with pytest.raises(RecordError, match="a.parquet:1: not JSON"):
        open_records(write_table([{"conversations": "[{"}], path)).parse(0)


def test_a_copy_is_announced_once_and_refused_without_room(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tables, "IN_PLACE", 10)
    path, prints = write_table([{**TALK, "id": str(at)} for at in range(250)], tmp_path / "a.parquet"), []
    for time in (1, 1, 2):
        os.utime(path, ns=(time, time))
        records = open_records(path)
        assert [records.parse(row)["id"] for row in (0, 101, 249)] == ["0", "101", "249"]
        prints.append((records.fingerprint(), "copying" in capfd.readouterr().err))
    assert prints[0][0] == prints[1][0] != prints[2][0] and [said for _, said in prints] == [True, False, True]
    os.utime(path, ns=(3, 3))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1))
    with pytest.raises(SettingError, match=r"no room for a copy of .*a.parquet \(.* GB are free\); name a cache"):
        open_records(path)


THREE = {f"x/1.{place}.jpg": str(place).encode() for place in (0, 10, 1)}
ONE = {"1.jpg": b"one"}
SAMPLES = [  # members, names in the record, its images
    (ONE, {"url": "http://host/1.jpg"}, [b"one"]),
    ({}, {}, []),
    (THREE, {}, [b"0", b"1", b"10"]),
    (THREE, {"image": ["coco/1.10.jpg", "1.0.JPG"]}, [b"10", b"0"]),
    (THREE, {"images": ["1.jpg", "D:\\x\\10.jpg"]}, [b"1", b"10"]),
    (THREE, {"image": ["other.jpg"]}, ["other.jpg"]),
    (ONE, {"image": "gone/elsewhere.jpg"}, [b"one"]),
]


def test_images_and_captions_of_samples(tmp_path):
    path = tmp_path / "a.tar"
    for files, named, found in SAMPLES:
        key = next(iter(files), "1.jpg").partition(".")[0]
        record = {"conversations": [{"from": "human", "value": "<image>" * len(found)}, TURNS[1]], **named}
        write_tar(path, {"__meta__.json": b"{}", f"{key}.json": json.dumps(record).encode(), **files})
        assert [images_of(each) for each in map(open_records(path).parse, [0])] == [found]
    caption = {"1.jpg": b"one", "1.txt": "A cat, 猫.\n".encode(), "1.json": b'{"url": "u"}'}
    write_tar(path, {**caption, "2.txt": b"\xff", "3.jpg": b"x"})
    records = open_records(path)
    assert parse_record(records.parse(0), "f:1").turns[1].text == "A cat, 猫."
    assert images_of(records.parse(0)) == [b"one"] and len(records) == 3
    for row, reason in ((1, "encoding"), (2, "sample")):
        with pytest.raises(RecordError, match=f"a.tar:{row + 1}: ") as refused:
            records.parse(row)
        assert refused.value.reason == reason


def test_files_that_change_or_are_damaged(tmp_path):
    records = open_records(path := write_table([TALK] * 30, tmp_path / "a.parquet"))
    assert records.parse(0) == TALK
    write_table([TALK] * 20, path)
    with pytest.raises(SourceError, match="a.parquet: the file has changed"):
        records.parse(1)
    rows = datasets.Dataset.from_list([TALK])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(saved := tmp_path / "saved")
    assert open_records(saved / "test").parse(0) == TALK
    with pytest.raises(SettingError, match=r"several splits \(train, test\); name one of them: .*saved/train"):
        open_records(saved)
    write_tar(tar := tmp_path / "a.tar", {"1.txt": b"one", "2.txt": b"two"})
    whole, (arrow,), cut = tar.read_bytes(), (saved / "test").glob("*.arrow"), "a.tar: can't be read as tar .*cut off"
    for named, file, content, words in (
        (path, path, b"PAR1" + bytes(100), "a.parquet: can't be read as parquet"),
        (saved / "test", arrow, b"", "test: can't be read as arrow"),
        (tar, tar, whole[:2048], cut),
        (tar, tar, whole[:1024] + b"\xff" * 6 + whole[1030:], cut),
    ):
        file.write_bytes(content)
        with pytest.raises(SettingError, match=words):
            open_records(named)
    with pytest.raises(SettingError, match="holds no rows"):
        open_records(write_table([], path))
