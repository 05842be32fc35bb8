import io
import json
import os
import tarfile
from functools import lru_cache

import pytest

from xtuner_plugins.datasets.errors import MediaError, RecordError, SettingError
from xtuner_plugins.datasets.images import archives
from xtuner_plugins.datasets.images.media import ImageFolder
from xtuner_plugins.datasets.records import webdataset
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.records.webdataset import split_name

TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
TWO = [{"from": "human", "value": "<image> <image>"}, {"from": "gpt", "value": "A"}]


@pytest.fixture
def open_members(tmp_path):
    """open_members({name: bytes or record}) -> (records, their images)."""

    def open_members(files):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name, data in files.items() if isinstance(files, dict) else files:
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        records = open_records(tmp_path / "a.tar", tmp_path / "cache")
        return records, records.own_images(ImageFolder(None, tmp_path))

    return open_members


def test_samples_and_their_images(open_members, tmp_path):
    files = {"x/1.jpg": b"one", "x/1.json": {"conversations": TURNS, "id": 5}, "2.json": {"conversations": TURNS}}
    records, images = open_members({"__meta__.json": {}, **files, "x/._1.jpg": b"mac"})
    assert len(records) == 2 and [records.source(row) for row in (0, 1)] == [f"{tmp_path}/a.tar:{n}" for n in (1, 2)]
    assert records.parse(0) == {"image": ["row://0/0/0"], "conversations": TURNS, "id": 5}
    assert "image" not in records.parse(1)
    blob = images.resolve("row://0/0/0")
    assert (blob.name, blob.data) == ("x/1.jpg", b"one")
    for name in ("row://0/0/1", "row://1/0/0", "row://2/0/0"):
        with pytest.raises(MediaError, match="no such"):
            images.resolve(name)


def test_members_of_a_sample_need_not_follow_each_other(open_members):
    records, images = open_members(
        {"1.json": {"conversations": TURNS}, "2.txt": b"B", "1.jpg": b"one", "2.png": b"two"}
    )
    assert [images.resolve(records.parse(row)["image"][0]).data for row in (0, 1)] == [b"one", b"two"]


@pytest.mark.parametrize(
    "named, found",
    [
        (None, ["0", "1", "10"]),
        (["coco/1.10.jpg", "1.0.JPG"], ["10", "0"]),
        (["1.jpg", "10.jpg"], ["1", "10"]),
        (["D:\\x\\1.1.jpg"], ["1"]),
        (["other.jpg"], ["other.jpg"]),
    ],
)
def test_names_of_several_images(open_members, named, found):
    files = {f"1.{place}.jpg": str(place).encode() for place in (0, 10, 1)}
    record = {"conversations": TURNS} if named is None else {"conversations": TURNS, "image": named}
    records, images = open_members({**files, "1.json": record})
    names = records.parse(0)["image"]
    got = [images.resolve(name).data.decode() if name.startswith("row://") else name for name in names]
    assert got == found


def test_a_single_image_is_the_one_that_is_meant(open_members):
    records, _ = open_members({"1.jpg": b"", "1.json": {"conversations": TURNS, "image": "gone/elsewhere.jpg"}})
    assert records.parse(0)["image"] == "row://0/0/0"


@pytest.mark.parametrize("part", [{"image": "{}"}, {"image_url": {"url": "{}"}}, {"path": "{}"}])
@pytest.mark.parametrize(
    "named, members, found",
    [
        (["1.png"], ["1.png"], ["1.png"]),
        (["gone/x.jpg"], ["1.png"], ["1.png"]),
        (["coco/1.b.png", "a.png"], ["1.a.png", "1.b.png"], ["1.b.png", "1.a.png"]),
        (["1.b.png"], ["1.a.png", "1.b.png"], ["1.b.png"]),
    ],
)
def test_names_in_parts_of_turns(open_members, part, named, members, found):
    parts = [{"type": "image", **json.loads(json.dumps(part).replace("{}", name))} for name in named]
    turns = [
        {"role": "user", "content": [*parts, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
    ]
    records, images = open_members({"1.json": {"messages": turns}} | {name: name.encode() for name in members})
    record = parse_record(records.parse(0), "f:1")
    assert [images.resolve(medium.name).data.decode() for medium in record.media] == found


def test_parts_without_names_have_the_images_in_order(open_members):
    turns = [{"role": "user", "content": [{"type": "image"}, "Q"]}, {"role": "assistant", "content": "A"}]
    records, _ = open_members({"1.json": {"messages": turns}, "1.png": b"one"})
    assert [medium.name for medium in parse_record(records.parse(0), "f:1").media] == ["row://0/0/0"]


def test_of_members_of_the_same_name_the_last_counts(open_members):
    """As `tar -r` leaves them after a repair."""
    members = [("0.txt", b"old"), ("0.png", b"red"), ("1.txt", b"other"), ("0.png", b"blue"), ("0.txt", b"new")]
    records, images = open_members(members)
    record = parse_record(records.parse(0), "f:1")
    assert len(records) == 2 and record.turns[1].text == "new"
    assert [images.resolve(medium.name).data for medium in record.media] == [b"blue"]


def test_captions(open_members):
    files = {"1.jpg": b"one", "1.txt": "A cat, 猫.\n".encode(), "1.json": {"url": "u", "width": 5}, "1.cls": b"3"}
    records, _ = open_members(files)
    record = parse_record(records.parse(0), "f:1")
    assert [part.name for part in record.media] == ["row://0/0/0"] and record.turns[1].text == "A cat, 猫."


@pytest.mark.parametrize(
    "files, message",
    [
        ({"1.jpg": b"one"}, "neither .json nor .txt, only 1.jpg"),
        ({"1.json": b"{"}, "not JSON"),
        ({"1.txt": b"\xff"}, "its caption isn't UTF-8"),
        ([("1.json", {"messages": []}), ("1.JSON", {"messages": []})], "two members '1.JSON'"),
        ({"1.json": {"texts": [{"user": 1}]}}, "no text for user"),
    ],
)
def test_samples_that_cannot_be_used(open_members, files, message, tmp_path):
    records, _ = open_members(files)
    with pytest.raises(RecordError, match=f"^{tmp_path}/a.tar:1: .*{message}"):
        records.parse(0)


def test_records_of_other_types_are_left_to_their_check(open_members):
    files = {"1.json": [1], "2.json": {"x": 1}, "3.json": {"conversations": TURNS, "image": 7}}
    records, _ = open_members(files)
    assert [records.parse(row) for row in range(3)] == list(files.values())
    for row in range(3):
        with pytest.raises(RecordError):
            parse_record(records.parse(row), "f:1")


def test_shards_that_cannot_be_used(open_members, tmp_path):
    with pytest.raises(SettingError, match="holds no samples"):
        open_members({"__meta__.json": {}})
    records, _ = open_members({"1.json": {"conversations": TURNS}, "1.jpg": b"x" * 2000})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:2000])
    with pytest.raises(SettingError, match="a.tar: is cut off"):
        open_records(tmp_path / "a.tar", tmp_path / "cache")
    with pytest.raises(RecordError, match="a.tar:1: .*has changed since it was opened"):
        records.parse(0)


def test_keys_end_at_the_first_dot():
    assert split_name("a.b/c.0.JPG") == ("a.b/c", "0.jpg") and split_name("x") == ("x", "")


def test_any_number_of_shards_under_any_limit_of_open_files(open_members, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_open_listing", lru_cache(2)(archives._open_listing.__wrapped__))
    monkeypatch.setattr(webdataset, "_open_samples", lru_cache(2)(webdataset._open_samples.__wrapped__))
    open_members({"1.jpg": b"one", "1.txt": b"a caption"})
    for number in range(20):
        (tmp_path / f"shard-{number}.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    before = len(os.listdir("/proc/self/fd"))
    records = open_records(f"{tmp_path}/shard-*.tar", tmp_path / "cache")
    images = records.own_images(ImageFolder(None, tmp_path))
    for row in range(20):
        assert images.resolve(records.parse(row)["image"][0]).data == b"one"
    assert len(os.listdir("/proc/self/fd")) == before
