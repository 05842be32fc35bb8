"""Tables of every layout, and of every defect."""

import os
import pickle
import shutil
from pathlib import Path

import datasets
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


@pytest.fixture
def held(monkeypatch):
    """What this process keeps of tables: nothing at first."""
    monkeypatch.setattr(tables, "_held", None)
    return tables._get_held()


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


def test_decoded_groups_are_bounded(open_rows, monkeypatch, held):
    rows = [{"image": os.urandom(1000), "conversations": TURNS} for _ in range(64)]
    opened = [open_rows(rows, group=4, name=name) for name in ("a.parquet", "b.parquet")]
    monkeypatch.setattr(tables, "MAX_HELD", 20_000)
    for row in (63, 0, 31, 7, 62, 1):
        for _, images in opened:  # the bound is that of the process
            assert images.resolve(f"row://{row}/0/0").data == rows[row]["image"]
            assert sum(size for _, size in held.groups.values()) == held.num_bytes <= 20_000
    assert 8_000 < held.num_bytes and len(pickle.dumps(opened[0][0])) < 4000


def test_views_of_arrow_files_are_bounded_by_their_number(tmp_path, monkeypatch, held):
    rows = datasets.Dataset.from_list([{"conversations": TURNS, "image": {"bytes": b"%d" % row}} for row in range(40)])
    rows.save_to_disk(tmp_path / "saved", num_shards=40)
    monkeypatch.setattr(tables, "MAX_GROUPS", 6)
    monkeypatch.setattr(tables, "MAX_OPEN", 3)
    records = open_records(tmp_path / "saved", tmp_path / "cache")
    images, before = records.own_images(ImageFolder(None)), len(os.listdir("/proc/self/fd"))
    for row in (*range(40), 3, 17):
        assert records.parse(row)["conversations"] == TURNS
        assert images.resolve(f"row://{row}/0/0").data == b"%d" % row
        assert len(held.groups) <= 6 and len(held.opened) <= 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_large_groups_are_read_a_few_rows_at_a_time(open_rows, monkeypatch, capfd, held):
    rows = [{"image": os.urandom(1000), "conversations": TURNS} for _ in range(300)]
    monkeypatch.setattr(tables, "LARGE_GROUP", 50_000)
    monkeypatch.setattr(tables, "WINDOW", 10_000)
    records, images = open_rows(rows, group=150)
    assert "row groups hold up to 0 MB; an image read at random" in capfd.readouterr().err
    for row in (*range(149, 160), 3, 299, 2):
        assert images.resolve(f"row://{row}/0/0").data == rows[row]["image"] and records.parse(row)["conversations"]
    windows = held.windows.values()
    assert len(windows) == 2 and all(window.num_bytes < 10_000 for window in windows) and not held.groups


@pytest.mark.parametrize("dictionary", [True, False])
def test_large_groups_are_never_held_whole_wherever_their_bytes_are(tmp_path, monkeypatch, held, dictionary):
    """The bytes of a few rows, at the end or in dictionaries, tell nothing of the others."""
    monkeypatch.setattr(tables, "LARGE_GROUP", 200_000)
    monkeypatch.setattr(tables, "WINDOW", 50_000)
    image = os.urandom(10_000)
    images = [image if dictionary or row >= 900 else None for row in range(1000)]
    rows = pyarrow.table({"image": images, "conversations": [TURNS] * 1000})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet", use_dictionary=dictionary)
    records = open_records(tmp_path / "a.parquet", tmp_path / "cache")
    found = records.own_images(ImageFolder(None))
    for row in (999, 950, 951, 999):
        assert found.resolve(f"row://{row}/0/0").data == image
        assert not held.groups and all(window.num_bytes <= 50_000 for window in held.windows.values())
    (window,) = held.windows.values()
    assert window.largest <= 50_000 and window.num_rows <= 5


def test_a_large_dictionary_is_not_kept_while_nothing_is_read(tmp_path, monkeypatch, held):
    monkeypatch.setattr(tables, "LARGE_GROUP", 2_000_000)
    monkeypatch.setattr(tables, "WINDOW", 500_000)
    images = [os.urandom(10_000) for _ in range(600)]
    rows = pyarrow.table({"image": images, "conversations": [TURNS] * 600})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet", dictionary_pagesize_limit=1 << 30)
    records, streams = open_records(tmp_path / "a.parquet", tmp_path / "cache"), []
    del rows
    stream = tables.ParquetTable.stream
    monkeypatch.setattr(tables.ParquetTable, "stream", lambda *args: streams.append(args[3]) or stream(*args))
    before = pyarrow.total_allocated_bytes()
    for row in (*range(300), 7):
        assert records.embedded(row, 0, 0).data == images[row]
        assert pyarrow.total_allocated_bytes() - before < 600_000
    assert len(streams) < 10  # 300 images are 6 windows


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


@pytest.fixture(params=["parquet", "arrow"])
def colors(tmp_path, request):
    """colors(*words, time) -> the records of a table of these words and images, which is written or replaced."""

    def colors(*words, time):
        rows = [
            {"image": {"bytes": word.encode()}, "conversations": [TURNS[0], TURNS[1] | {"value": word}]}
            for word in words
        ]
        path = tmp_path / "a.parquet"
        if request.param == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "new")
        else:
            datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved.new")
            path = tmp_path / "saved" / "data-00000-of-00001.arrow"
            if not path.parent.exists():
                shutil.copytree(tmp_path / "saved.new", path.parent)
            (tmp_path / "saved.new" / path.name).replace(tmp_path / "new")
        os.utime(tmp_path / "new", (time, time))
        (tmp_path / "new").replace(path)
        return open_records(path if request.param == "parquet" else path.parent, tmp_path / "cache")

    return colors


def color_of(records, row):
    return records.parse(row)["conversations"][1]["value"], records.embedded(row, 0, 0).data.decode()


@pytest.mark.parametrize("time", [1e9, 2e9])
def test_a_file_that_is_replaced_meanwhile(colors, held, time):
    records = colors("red", "tan", time=1e9)
    worker = pickle.loads(pickle.dumps(records))
    assert color_of(records, 0) == ("red", "red")
    colors("tan", "red", time=time)  # as long, and of the same time
    assert color_of(records, 0) == ("red", "red")  # what is open stays as it was
    for file in records.files:  # as where more than MAX_OPEN files are read
        file.close()
    held.groups.clear()
    for each in (records, worker):
        with pytest.raises(RecordError, match="has changed since it was opened; start again") as caught:
            each.parse(0)
        assert caught.value.reason == "file_changed"
        with pytest.raises(MediaError, match="has changed since it was opened"):
            each.embedded(0, 0, 0)


def test_a_file_that_is_written_over_meanwhile(colors, held):
    records = colors("red", "tan", time=1e9)
    assert records.parse(0)["conversations"]
    path = Path(records.files[0].path)
    path.write_bytes(path.read_bytes())  # the same inode; its images weren't read yet
    with pytest.raises(MediaError, match="has changed since it was opened"):
        records.embedded(0, 0, 0)


def test_a_file_with_other_permissions_or_another_inode_is_the_same(colors, held):
    records = colors("red", "tan", time=1e9)
    path = Path(records.files[0].path)
    path.chmod(0o600)
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").replace(path)
    assert color_of(records, 1) == ("tan", "tan")


def test_no_descriptor_is_left(colors, no_descriptors):
    records = colors("red", time=1e9)
    with no_descriptors(), pytest.raises(RecordError, match="as many files open as it may .*ulimit -n") as caught:
        records.parse(0)
    assert caught.value.reason == "open_files"
    with no_descriptors(), pytest.raises(MediaError, match="ulimit -n"):
        records.embedded(0, 0, 0)
    with no_descriptors(), pytest.raises(SettingError, match="ulimit -n"):
        tables.TableRecords(records.path, [records.files[0].path], type(records.files[0]))


def test_the_fingerprint_changes_with_the_file(open_rows, tmp_path):
    first, _ = open_rows([{"conversations": TURNS}])
    second, _ = open_rows([{"conversations": TURNS[::-1]}])
    assert first.fingerprint("") != second.fingerprint("")
