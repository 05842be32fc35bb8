"""Annotation files in stores: fetched once per version, opened under the names of their URLs."""

import json
import os
import pickle
import time
from pathlib import Path

import pytest

from tests.datasets.source_kinds import as_lines, make_records, talk
from tests.datasets.store_servers import query_server
from xtuner_plugins.audit.check import check_dataset, write_reject_list
from xtuner_plugins.audit.opening import Trouble
from xtuner_plugins.datasets import unused
from xtuner_plugins.datasets.errors import RecordError, SettingError
from xtuner_plugins.datasets.records.opening import folder_of, open_records, stem_of
from xtuner_plugins.datasets.stores import fetch as module
from xtuner_plugins.datasets.stores.store import StoreSettings


@pytest.fixture
def open_url(server, tmp_path):
    def open_url(name, query="", timeout=30):
        return open_records(f"{server.url}/data/{name}{query}", tmp_path / "cache", StoreSettings(timeout=timeout))

    return open_url


def test_a_file_is_fetched_again_when_it_changes(server, open_url, capsys):
    server.objects["data/a.jsonl"] = as_lines(make_records())
    records = open_url("a.jsonl")
    said = capsys.readouterr().err
    assert len(records) == 8 and records.parse(0) == make_records()[0]
    assert records.path == f"{server.url}/data/a.jsonl" and records.source(2) == f"{records.path}:3"
    assert f"fetching {records.path} (" in said and f"fetched {records.path}: " in said
    assert len(open_url("a.jsonl")) == 8 and not capsys.readouterr().err
    server.objects["data/a.jsonl"] = as_lines(make_records()[:3])
    assert len(open_url("a.jsonl")) == 3 and len(records) == 8
    assert pickle.loads(pickle.dumps(records)).parse(7) == make_records()[7]


def age(path, days):
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


def test_a_version_in_use_stays(server, open_url, monkeypatch):
    """One that another run has opened, or still reads, isn't removed; one that nobody has used for a week is."""
    folders = []
    for text in ("unused", "opened", "read"):
        server.objects["data/a.jsonl"] = as_lines([talk("A?", text)])
        folders.append(Path(open_url("a.jsonl").copy).parent)
    run = open_url("a.jsonl")
    for folder in folders:
        age(folder, 8)
    server.objects["data/a.jsonl"] = as_lines([talk("A?", "opened")])
    opened = open_url("a.jsonl")
    unused._used.discard(str(folders[0]))  # as in another process
    monkeypatch.setattr(unused, "_marked_at", 0.0)
    assert run.parse(0)["conversations"][1]["value"] == "read"
    server.objects["data/a.jsonl"] = as_lines([talk("A?", "new")])
    assert open_url("a.jsonl").parse(0)["conversations"][1]["value"] == "new"
    assert [folder.exists() for folder in folders] == [False, True, True]
    for records, text in ((opened, "opened"), (run, "read")):
        assert records.parse(0)["conversations"][1]["value"] == text
    age(folders[2], 8)
    monkeypatch.setattr(unused, "_used", set())  # a process that inherits nothing
    assert pickle.loads(pickle.dumps(run)).parse(0) and not unused.is_unused(folders[2], 86_400)


@pytest.mark.parametrize("mode", ["no version", "no ranges"])
def test_servers_that_can_do_less(server, open_url, monkeypatch, mode):
    monkeypatch.setattr(module, "BLOCK", 300)
    server.objects["data/a.jsonl"], server.mode = as_lines(make_records()), mode
    assert len(open_url("a.jsonl")) == 8
    server.objects["data/a.jsonl"] = as_lines(make_records()[:2])
    assert len(open_url("a.jsonl")) == 2


def test_a_large_file_comes_in_blocks(server, open_url, monkeypatch, capsys):
    monkeypatch.setattr(module, "BLOCK", 300)
    monkeypatch.setattr(module, "SAY_AFTER", 0)
    server.objects["data/a.jsonl"] = as_lines(make_records())
    records = open_url("a.jsonl")
    assert [records.parse(row) for row in range(8)] == make_records()
    ranges = [asked for _, _, asked in server.asked if asked]
    assert ranges[:2] == ["bytes=0-299", "bytes=300-599"] and "MB of (" in capsys.readouterr().err


def test_messages_name_the_url(server, open_url):
    url = f"{server.url}/data"
    server.objects |= {"data/a.jsonl": b'{"a": 1}\n{"b": \n', "data/b.json": b"[1,", "data/c.parquet": b"PAR1abc"}
    records = open_url("a.jsonl", "?X-Sig=abc")
    assert records.path == f"{url}/a.jsonl?***"
    with pytest.raises(RecordError, match=r"/data/a.jsonl\?\*\*\*:2: ") as error:
        records.parse(1)
    with records.reader() as reader, pytest.raises(RecordError, match=r"/data/a.jsonl\?\*\*\*:2: "):
        reader.parse(1)
    assert "fetched" not in str(error.value)
    for name in ("b.json", "c.parquet"):
        with pytest.raises((SettingError, RecordError), match=f"{url}/{name}") as error:
            open_url(name)
        assert "fetched" not in str(error.value)


@pytest.mark.parametrize(
    "mode, words",
    [
        ("404", "no such object in the store; correct data_paths"),
        ("403", "denies access"),
        ("500", "no answer in"),
        ("truncated", "no answer in"),
        ("html", "is neither a JSON array nor JSON lines"),
    ],
)
def test_what_cant_be_fetched(server, open_url, mode, words):
    server.objects["data/a.jsonl"], server.mode = as_lines(make_records()), mode
    with pytest.raises(SettingError, match=f"{server.url}/data/a.jsonl.*{words}"):
        open_url("a.jsonl", timeout=1)


def test_a_file_that_changes_meanwhile(server, open_url, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 300)
    server.objects["data/a.jsonl"] = as_lines(make_records())

    def change(path):
        if sum(asked is not None for _, _, asked in server.asked) == 2:
            server.objects[path] = as_lines([talk("A?", "B " * 500)] * 2)
        return "ok"

    server.mode = change
    with pytest.raises(SettingError, match="it has changed meanwhile; start again when nothing writes to it"):
        open_url("a.jsonl")


def test_patterns_arent_looked_up(open_url):
    with pytest.raises(SettingError, match="patterns of URLs aren't looked up; name the files one by one"):
        open_url("*.jsonl")


def test_names_beside_a_url():
    assert folder_of("s3://bucket/data/a.jsonl") == "s3://bucket/data"
    assert folder_of("https://host/data/a.jsonl?sig=1") == "https://host/data?sig=1"
    assert stem_of("s3://bucket/data/a.jsonl.gz") == stem_of("https://host/a.jsonl?sig=/b") == "a"
    assert str(folder_of("file:///data/a.jsonl")) == "/data"


def test_images_beside_the_file(data_base, server, tmp_path):
    """Without an image folder, names are relative to the annotation file."""
    from PIL import Image

    from xtuner_plugins.datasets import MultimodalDataset

    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    server.objects["data/deep/a.png"] = (tmp_path / "a.png").read_bytes()
    server.objects["data/a.jsonl"] = json.dumps(talk("A?", "B.", image="deep/a.png")).encode()
    data = f"{server.url}/data/a.jsonl"
    dataset = MultimodalDataset(str(data_base), data, cache_dir=str(tmp_path / "cache"))
    assert dataset[0]["num_tiles"] == 7
    server.objects["data/a.jsonl"] = json.dumps(talk("A?", "B.", image="../a.png")).encode()
    with pytest.raises(RecordError, match="leaves the image folder"):
        MultimodalDataset(str(data_base), data, cache_dir=str(tmp_path / "cache"))[0]


def test_files_that_differ_in_their_queries(tmp_path, data_base):
    """Each has its own copy and its own rejected records, also after another start with another signature."""
    from xtuner_plugins.datasets import MultimodalDataset

    with query_server(lambda query: as_lines([talk("A?", query["f"][0] * 40)] * 3)) as url:

        def open_both(sign, **options):
            paths = [f"{url}/get?f={name}&X-Amz-Signature={sign}" for name in "ab"]
            options |= {"cache_dir": str(tmp_path / "cache"), "on_bad_sample": "skip"}
            return MultimodalDataset(str(data_base), paths, **options)

        dataset = open_both("hunter2")
        texts = [source.index.parse(0)["conversations"][1]["value"][0] for source in dataset.sources]
        assert texts == ["a", "b"]
        reports = check_dataset(dataset, num_workers=0)
        reports[1].troubles.append(Trouble(2, "json", "x"))
        assert write_reject_list(tmp_path / "bad.jsonl", reports) == 1
        assert open_both("other", reject_list=str(tmp_path / "bad.jsonl")).rejected == [set(), {2}]
        text = (tmp_path / "bad.jsonl").read_text()
        assert "hunter2" not in text and "f=b" not in text
        entry = json.loads(text)
        del entry["key"]  # as such lists once were
        (tmp_path / "old.jsonl").write_text(json.dumps(entry))
        with pytest.raises(SettingError, match="old.jsonl' can't be read .*hides which file"):
            open_both("other", reject_list=str(tmp_path / "old.jsonl"))
        (tmp_path / "own.jsonl").write_text(json.dumps({"file": f"{url}/get?f=a", "row": 1}))
        assert open_both("other", reject_list=str(tmp_path / "own.jsonl")).rejected == [{1}, set()]
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"hunter2" not in kept
