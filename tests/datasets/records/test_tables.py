"""Tables and tar shards: rows of every layout as records, copies, and what can't be read."""

import io
import json
import os
import shutil
import tarfile
from collections import namedtuple

import datasets
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from xtuner_plugins.datasets.records import tables
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.errors import RecordError, SettingError, SourceError

TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
TALK = {"conversations": TURNS}


def write(path, rows, **options):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def images_of(record):
    """Bytes or names of the images of a record."""
    return [getattr(medium.name, "data", medium.name) for medium in parse_record(record, "f:1").media]


LAYOUTS = [
    ({"image": b"x", "conversations": TURNS}, [b"x"]),
    ({"image": {"bytes": b"x", "path": "a.jpg"}, "messages": TURNS}, [b"x"]),
    ({"images": [{"bytes": None, "path": "a.jpg"}], "conversations": TURNS, "id": None}, ["a.jpg"]),
    ({"image": "a.jpg", "conversations": json.dumps(TURNS)}, ["a.jpg"]),
    ({"texts": [{"user": "Q", "assistant": "A"}], "images": [b"x", b"y"]}, [b"x", b"y"]),
]


def test_layouts_of_rows(tmp_path, monkeypatch):
    for in_place in (32 << 20, 0):
        monkeypatch.setattr(tables, "IN_PLACE", in_place)
        for row, expected in LAYOUTS:
            records = open_records(write(tmp_path / "a.parquet", [row]))
            assert (records.source(0), records.line(0), len(records)) == (f"{tmp_path}/a.parquet:1", 1, 1)
            assert images_of(records.parse(0)) == expected and None not in records.parse(0).values()
            assert isinstance(records.rows, tables.ParquetRows) == bool(in_place)
    records = open_records(write(tmp_path / "a.parquet", [{"conversations": "[{"}]))
    with pytest.raises(RecordError, match="a.parquet:1: not JSON"):
        records.parse(0)


def test_a_copy_is_announced_once_and_refused_without_room(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tables, "IN_PLACE", 10)
    path = write(tmp_path / "a.parquet", [{**TALK, "id": str(number)} for number in range(250)])
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda place: usage(1))
        with pytest.raises(SettingError, match=r"no room for a copy of .*a.parquet \(.* GB are free\); name a cache"):
            open_records(path)
    records = open_records(path)
    assert [records.parse(row)["id"] for row in (0, 101, 249)] == ["0", "101", "249"]
    assert "copying" in capfd.readouterr().err and records.parse(249)["conversations"] == TURNS
    open_records(path)
    assert "copying" not in capfd.readouterr().err
    os.utime(path, ns=(1, 1))
    assert open_records(path).fingerprint() != records.fingerprint()
    assert "copying" in capfd.readouterr().err


def test_files_that_change_or_are_damaged(tmp_path):
    records = open_records(write(tmp_path / "a.parquet", [TALK] * 30, row_group_size=1))
    assert records.parse(0) == TALK
    write(tmp_path / "a.parquet", [TALK] * 20)
    with pytest.raises(SourceError, match="a.parquet: the file has changed"):
        records.parse(1)
    (tmp_path / "c.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(SettingError, match="c.parquet: can't be read as parquet"):
        open_records(tmp_path / "c.parquet")
    with pytest.raises(SettingError, match="holds no rows"):
        open_records(write(tmp_path / "d.parquet", []))
    rows = datasets.Dataset.from_list([TALK])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(SettingError, match=r"several splits \(train, test\); name one of them: .*saved/train"):
        open_records(tmp_path / "saved")
    assert open_records(tmp_path / "saved" / "test").parse(0) == TALK


@pytest.fixture
def open_members(tmp_path):
    """open_members({name: bytes or record}) -> records of a shard."""

    def open_members(files):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name, data in files.items():
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return open_records(tmp_path / "a.tar")

    return open_members


def test_images_of_a_sample(open_members):
    three = {f"x/1.{place}.jpg": str(place).encode() for place in (0, 10, 1)}
    one = {"1.jpg": b"one"}
    for files, named, found in [
        (one, {"url": "http://host/1.jpg"}, [b"one"]),
        ({}, {}, []),
        (three, {}, [b"0", b"1", b"10"]),
        (three, {"image": ["coco/1.10.jpg", "1.0.JPG"]}, [b"10", b"0"]),
        (three, {"images": ["1.jpg", "D:\\x\\10.jpg"]}, [b"1", b"10"]),
        (three, {"image": ["other.jpg"]}, ["other.jpg"]),
        (one, {"image": "gone/elsewhere.jpg"}, [b"one"]),
    ]:
        key = next(iter(files), "1.jpg").partition(".")[0]
        question = {"from": "human", "value": "<image>" * len(found)}
        record = {"conversations": [question, TURNS[1]], **named}
        records = open_members({"__meta__.json": {}, f"{key}.json": record, **files})
        assert len(records) == 1 and images_of(records.parse(0)) == found


def test_captions_and_samples_without_text(open_members):
    caption = {"1.jpg": b"one", "1.txt": "A cat, 猫.\n".encode(), "1.json": {"url": "u"}}
    records = open_members({**caption, "2.txt": b"\xff", "3.jpg": b"x"})
    assert parse_record(records.parse(0), "f:1").turns[1].text == "A cat, 猫."
    assert images_of(records.parse(0)) == [b"one"]
    for row, reason in ((1, "encoding"), (2, "sample")):
        with pytest.raises(RecordError, match=f"a.tar:{row + 1}: ") as refused:
            records.parse(row)
        assert refused.value.reason == reason


def test_damaged_shards_are_refused(open_members, tmp_path, cache):
    open_members({"1.txt": b"one", "2.txt": b"two"})
    whole = (tmp_path / "a.tar").read_bytes()
    for damaged in (whole[:2048], whole[:1024] + b"\xff" * 6 + whole[1030:]):
        shutil.rmtree(cache)
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(SettingError, match="a.tar: can't be read as tar .*damaged or cut off"):
            open_records(tmp_path / "a.tar")


def test_images_are_written_as_they_are(tmp_path):
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png")):
        Image.new("RGB", (8, 6), "red").save(buffer := io.BytesIO(), kind)
        name = tables.write_image(buffer.getvalue(), tmp_path, "f:1")
        assert name.endswith(f".{suffix}") and (tmp_path / name).read_bytes() == buffer.getvalue()
        assert tables.write_image(buffer.getvalue(), tmp_path, "f:1") == name
    for data in (b"", b"no image", None):
        with pytest.raises(RecordError, match="f:7: its image can't be read"):
            tables.write_image(data, tmp_path, "f:7")
