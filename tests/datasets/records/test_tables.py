"""Tables and tar shards: rows of every layout as records, copies, and what can't be read."""

import datetime
import io
import json
import os
import shutil
import tarfile
from collections import namedtuple

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from xtuner_plugins.datasets.images.media import Blob
from xtuner_plugins.datasets.records import tables
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.errors import RecordError, SettingError, SourceError

TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
PAIR = [{"user": "Q", "assistant": "A"}]


def write(path, rows, **options):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def plain(value):
    """A record with the bytes of its images in place of `Blob`s."""
    if isinstance(value, Blob):
        return value.data
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value


LAYOUTS = [
    ({"image": b"x", "conversations": TURNS}, {"image": b"x", "conversations": TURNS}),
    ({"image": {"bytes": b"x", "path": "a.jpg"}, "messages": TURNS}, {"image": b"x", "messages": TURNS}),
    ({"images": [{"bytes": None, "path": "a.jpg"}]}, {"images": ["a.jpg"]}),
    ({"image": "a.jpg", "id": None}, {"image": "a.jpg"}),
    ({"conversations": json.dumps(TURNS)}, {"conversations": TURNS}),
    ({"conversations": {"from": ["human", "gpt"], "value": ["Q", "A"]}}, {"conversations": TURNS}),
    ({"texts": PAIR}, {"conversations": TURNS}),
    (
        {"texts": PAIR, "images": [b"x", b"y"]},
        {"images": [b"x", b"y"], "conversations": [{"from": "human", "value": "<image>\n<image>\nQ"}, TURNS[1]]},
    ),
    ({"conversations": TURNS, "when": datetime.date(2026, 1, 1)}, None),
]


@pytest.mark.parametrize("row, expected", LAYOUTS)
@pytest.mark.parametrize("in_place", [True, False])
def test_layouts_of_rows(tmp_path, monkeypatch, row, expected, in_place):
    if not in_place:
        monkeypatch.setattr(tables, "IN_PLACE", 0)
    records = open_records(write(tmp_path / "a.parquet", [row]))
    assert (records.source(0), records.line(0), len(records)) == (f"{tmp_path}/a.parquet:1", 1, 1)
    assert plain(records.parse(0)) == (expected or row)
    assert isinstance(records.rows, tables.ParquetRows) == in_place


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"texts": PAIR, "messages": TURNS}, "two_formats"),
        ({"texts": [{"user": "Q"}]}, "turn_keys"),
        ({"conversations": "[{"}, "json"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, row, reason):
    records = open_records(write(tmp_path / "a.parquet", [row]))
    with pytest.raises(RecordError, match="a.parquet:1: ") as refused:
        records.parse(0)
    assert refused.value.reason == reason


def test_a_copy_is_announced_once_and_refused_without_room(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tables, "IN_PLACE", 10)
    path = write(tmp_path / "a.parquet", [{"conversations": TURNS, "id": str(number)} for number in range(250)])
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


def test_files_that_change_or_differ(tmp_path):
    rows = [{"conversations": TURNS}] * 30
    records = open_records(write(tmp_path / "a.parquet", rows, row_group_size=1))
    assert records.parse(0) == rows[0]
    write(tmp_path / "a.parquet", rows[:20])
    with pytest.raises(SourceError, match="a.parquet: the file has changed"):
        records.parse(1)
    write(tmp_path / "b.parquet", [{"image": b"x"}])
    with pytest.raises(SettingError, match="b.parquet: has the columns"):
        open_records(f"{tmp_path}/*.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(SettingError, match="c.parquet: can't be read as parquet"):
        open_records(tmp_path / "c.parquet")
    with pytest.raises(SettingError, match="holds no rows"):
        open_records(write(tmp_path / "d.parquet", [{"a": 1}][:0] or []))


def test_splits_of_a_saved_dataset_are_named(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"conversations": TURNS}])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(SettingError, match=r"several splits \(train, test\); name one of them: .*saved/train"):
        open_records(tmp_path / "saved")
    assert open_records(tmp_path / "saved" / "test").parse(0) == {"conversations": TURNS}


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


IMAGES = {f"x/1.{place}.jpg": str(place).encode() for place in (0, 10, 1)}
ONE = {"1.jpg": b"one"}
SAMPLES = [
    (ONE, {"conversations": TURNS, "url": "http://host/1.jpg"}, [b"one"]),
    ({}, {"conversations": TURNS}, []),
    (IMAGES, {"conversations": TURNS}, [b"0", b"1", b"10"]),
    (IMAGES, {"conversations": TURNS, "image": ["coco/1.10.jpg", "1.0.JPG"]}, [b"10", b"0"]),
    (IMAGES, {"conversations": TURNS, "image": ["1.jpg", "D:\\x\\10.jpg"]}, [b"1", b"10"]),
    (IMAGES, {"conversations": TURNS, "image": ["other.jpg"]}, ["other.jpg"]),
    (ONE, {"conversations": TURNS, "image": "gone/elsewhere.jpg"}, [b"one"]),
]


@pytest.mark.parametrize("files, record, found", SAMPLES)
def test_images_of_a_sample(open_members, files, record, found):
    key = next(iter(files), "1.jpg").partition(".")[0]
    records = open_members({"__meta__.json": {}, f"{key}.json": record, **files})
    value = plain(records.parse(0)).get("image", [])
    assert len(records) == 1 and (value if isinstance(value, list) else [value]) == found


@pytest.mark.parametrize("part", [{"image": "1.b.png"}, {"image_url": {"url": "x/b.png"}}, {"path": "1.b.png"}])
def test_names_in_parts_of_turns(open_members, part):
    parts = [{"type": "image", **part}, {"type": "text", "text": "Q"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A"}]
    records = open_members({"1.a.png": b"a", "1.b.png": b"b", "1.json": {"messages": turns}})
    (medium,) = parse_record(records.parse(0), "f:1").media
    assert medium.name.data == b"b"


def test_captions_and_samples_without_text(open_members):
    records = open_members(
        {"1.jpg": b"one", "1.txt": "A cat, 猫.\n".encode(), "1.json": {"url": "u"}, "2.txt": b"\xff", "3.jpg": b"x"}
    )
    record = parse_record(records.parse(0), "f:1")
    assert record.turns[1].text == "A cat, 猫." and [medium.name.data for medium in record.media] == [b"one"]
    for row, reason in ((1, "encoding"), (2, "sample")):
        with pytest.raises(RecordError, match=f"a.tar:{row + 1}: ") as refused:
            records.parse(row)
        assert refused.value.reason == reason


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_damaged_shards_are_refused(open_members, tmp_path, cache, damage):
    open_members({"1.txt": b"one", "2.txt": b"two"})
    shutil.rmtree(cache)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    if damage == "header":
        data[1024:1030] = b"\xff" * 6
    (tmp_path / "a.tar").write_bytes(data if damage == "header" else data[:2048])
    with pytest.raises(SettingError, match="a.tar: can't be read as tar .*damaged or cut off"):
        open_records(tmp_path / "a.tar")


@pytest.mark.parametrize("kind, suffix", [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_images_are_written_as_they_are(tmp_path, kind, suffix):
    Image.new("RGB", (8, 6), "red").save(buffer := io.BytesIO(), kind)
    name = tables.write_image(buffer.getvalue(), tmp_path, "f:1")
    assert name.endswith(f".{suffix}") and (tmp_path / name).read_bytes() == buffer.getvalue()
    assert tables.write_image(buffer.getvalue(), tmp_path, "f:1") == name
    for data in (b"", b"no image", None):
        with pytest.raises(RecordError, match="f:7: its image can't be read"):
            tables.write_image(data, tmp_path, "f:7")
