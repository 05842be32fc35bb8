"""Tables of every layout, and of every defect."""

import os
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from xtuner_plugins.datasets.errors import MediaError, RecordError, SettingError
from xtuner_plugins.datasets.images.media import ImageFolder
from xtuner_plugins.datasets.records import tables
from xtuner_plugins.datasets.records.opening import open_records

TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


@pytest.fixture
def open_rows(tmp_path):
    """open_rows(rows) -> (records, their images)."""

    def open_rows(rows, schema=None, group=100, name="a.parquet"):
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows, schema=schema), tmp_path / name, row_group_size=group
        )
        records = open_records(tmp_path / name, tmp_path / "cache")
        return records, records.own_images(ImageFolder(None, tmp_path))

    return open_rows


def test_a_row_is_a_record(open_rows, tmp_path):
    records, images = open_rows([{"id": 7, "image": {"bytes": b"one", "path": "x.jpg"}, "conversations": TURNS}])
    assert records.parse(0) == {"id": 7, "image": "row://0/0/0", "conversations": TURNS}
    assert (records.source(0), records.line(0), len(records)) == (f"{tmp_path}/a.parquet:1", 1, 1)
    assert images.resolve("row://0/0/0").data == b"one"


def test_rows_without_images_have_none(open_rows):
    rows = [{"image": None, "conversations": TURNS}, {"image": {"bytes": b"x"}, "conversations": TURNS}]
    records, _ = open_rows(rows)
    assert "image" not in records.parse(0) and records.parse(1)["image"] == "row://1/0/0"
    lists, _ = open_rows([{"images": [], "conversations": TURNS}, {"images": [b"x", b"y"], "conversations": TURNS}])
    assert "images" not in lists.parse(0) and lists.parse(1)["images"] == ["row://1/0/0", "row://1/0/1"]


def test_what_an_image_may_lack(open_rows, tmp_path):
    rows = [{"image": {"bytes": None, "path": path}, "texts": []} for path in ("a.jpg", None, "../../x", "https://a/b")]
    rows.append({"image": {"bytes": b"x", "path": None}, "texts": []})
    records, images = open_rows(rows)
    assert images.resolve("row://0/0/0") == f"{tmp_path}/a.jpg" and images.resolve("b.png") == f"{tmp_path}/b.png"
    with pytest.raises(MediaError, match="image 1: neither bytes nor a path"):
        images.resolve("row://1/0/0")
    with pytest.raises(MediaError, match="is a URL"):
        images.resolve("row://3/0/0")
    for name in ("row://9/0/0", "row://0/4/0", "row://0/0/7/"):
        with pytest.raises(MediaError):
            images.resolve(name)
    within = records.own_images(ImageFolder(tmp_path))
    with pytest.raises(MediaError, match="leaves the image folder"):
        within.resolve("row://2/0/0")


def test_only_what_is_needed_is_read(open_rows, monkeypatch):
    records, images = open_rows([{"images": [{"bytes": b"x" * 99, "path": None}], "conversations": TURNS}] * 4)
    asked = []
    read = tables.ParquetTable.read
    monkeypatch.setattr(tables.ParquetTable, "read", lambda *args: asked.append(args[2]) or read(*args))
    assert [records.parse(row)["images"] for row in range(4)] == [[f"row://{row}/0/0"] for row in range(4)]
    assert asked == [["conversations", "images.list.element.path"]]
    images.resolve("row://2/0/0")
    assert asked[1:] == [["images"]]


def test_decoded_groups_are_bounded(open_rows, monkeypatch):
    rows = [{"image": os.urandom(1000), "conversations": TURNS} for _ in range(64)]
    records, images = open_rows(rows, group=4)
    monkeypatch.setattr(tables, "MAX_HELD", 20_000)
    for row in (63, 0, 31, 7, 62, 1):
        assert images.resolve(f"row://{row}/0/0").data == rows[row]["image"]
        assert sum(size for _, size in records._held.groups.values()) <= 20_000
    assert len(pickle.dumps(records)) < 4000


def test_large_groups_are_read_a_few_rows_at_a_time(open_rows, monkeypatch, capfd):
    rows = [{"image": os.urandom(1000), "conversations": TURNS} for _ in range(300)]
    monkeypatch.setattr(tables, "LARGE_GROUP", 50_000)
    monkeypatch.setattr(tables, "WINDOW", 10_000)
    records, images = open_rows(rows, group=150)
    assert "row groups hold up to 0 MB; an image read at random" in capfd.readouterr().err
    for row in (*range(149, 160), 3, 299, 2):
        assert images.resolve(f"row://{row}/0/0").data == rows[row]["image"] and records.parse(row)["conversations"]
    windows = records._held.windows
    assert windows and all(table.num_rows < 15 for _, _, table, _ in windows.values())


def test_many_files_keep_few_open(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_OPEN", 2)
    for number in range(6):
        rows = [{"image": bytes([number]), "conversations": TURNS}] * (number + 1)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
    records = open_records(tmp_path, tmp_path / "cache")
    images = records.own_images(ImageFolder(None, tmp_path))
    assert len(records) == 21
    found = [images.resolve(f"row://{row}/0/0").data[0] for row in range(21)]
    assert found == [number for number in range(6) for _ in range(number + 1)]
    assert sum("file" in vars(file) for file in records.files) == 2
    assert records.source(20) == f"{tmp_path}/5.parquet:6" and records.line(1) == 1


@pytest.mark.parametrize(
    "row, message",
    [
        ({"img_bytes": b"x", "conversations": TURNS}, "no column 'image' or 'images', but bytes in img_bytes"),
        ({"image": [[b"x"]], "conversations": TURNS}, "the column 'image' is list<.*make it bytes"),
        ({"image": {"data": b"x"}, "conversations": TURNS}, "the column 'image' is struct<data: binary>"),
    ],
)
def test_columns_that_cannot_be_used(open_rows, row, message):
    with pytest.raises(SettingError, match=message):
        open_rows([row])


def test_files_of_several_forms(tmp_path):
    for name, row in {"a": {"image": b"x", "texts": []}, "b": {"image": "x.jpg", "texts": []}}.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
    with pytest.raises(SettingError, match="b.parquet: has the columns image, texts, but .*a.parquet texts"):
        open_records(tmp_path, tmp_path / "cache")


def test_no_rows_no_whole_file_and_no_text(open_rows, tmp_path):
    with pytest.raises(SettingError, match="holds no rows"):
        open_rows([], schema=pyarrow.schema({"conversations": pyarrow.string()}))
    records, _ = open_rows([{"conversations": "[1, 2"}, {"conversations": '[{"from": "human"}]'}])
    with pytest.raises(RecordError, match=f"^{tmp_path}/a.parquet:1: not JSON"):
        records.parse(0)
    assert records.parse(1) == {"conversations": [{"from": "human"}]}
    whole = (tmp_path / "a.parquet").read_bytes()
    for data in (whole[:-9], whole[:4], whole[:-400] + bytes(392) + whole[-8:]):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(SettingError, match="is no whole Parquet file .*fetch it again"):
            open_records(tmp_path / "a.parquet", tmp_path / "cache")


def test_texts_that_are_not_utf8(tmp_path):
    buffers = [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)
    pyarrow.parquet.write_table(pyarrow.table({"conversations": text}), tmp_path / "a.parquet")
    with pytest.raises(RecordError, match="a.parquet:1: can't be read .*utf"):
        open_records(tmp_path / "a.parquet", tmp_path / "cache").parse(0)


def test_a_file_that_goes_meanwhile(open_rows, tmp_path):
    records, images = open_rows([{"image": b"x", "conversations": TURNS}])
    Path(tmp_path / "a.parquet").unlink()
    with pytest.raises(RecordError, match="a.parquet:1: can't be read any more"):
        records.parse(0)
    with pytest.raises(MediaError, match="can't be read any more"):
        images.resolve("row://0/0/0")


def test_the_fingerprint_changes_with_the_file(open_rows, tmp_path):
    first, _ = open_rows([{"conversations": TURNS}])
    second, _ = open_rows([{"conversations": TURNS[::-1]}])
    assert first.fingerprint("") != second.fingerprint("")
