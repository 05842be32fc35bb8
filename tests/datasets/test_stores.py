"""Stores over HTTP and S3's protocol: what each answer becomes, tries, copies, and what messages hide."""

import gzip
import json
import os
import pickle
import zipfile

import pytest
from PIL import Image

from tests.datasets.store_servers import BUCKET, ObjectServer
from xtuner_plugins.datasets import MultimodalDataset, stores
from xtuner_plugins.datasets.images.media import image_size, load_image, open_images
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.stores import Store, localize
from xtuner_plugins.errors import DataError, MediaError, SettingError, SourceError


@pytest.fixture
def server(monkeypatch):
    """A server that can misbehave; tries follow each other at once."""
    monkeypatch.setattr(stores, "PAUSES", (0, 0.01, 0.01, 0.01))
    with ObjectServer() as server:
        yield server
        server.shutdown()


def test_what_each_answer_becomes(server, monkeypatch):
    server.objects[f"{BUCKET}/x/a.jpg"] = b"bytes" * 100
    options = {"endpoint_url": server.url, "anon": True}
    for store in (Store(f"s3://{BUCKET}/x", options), http := Store(f"{server.url}/{BUCKET}/x")):
        for server.mode, reason in {"404": "image_missing", "401": "store_denied", "403": "store_denied"}.items():
            for ask in (store.read, store.version):
                with pytest.raises(MediaError, match="/x/a.jpg: .*; ") as refused:
                    ask("a.jpg")
                assert refused.value.reason == reason
        server.mode = "ok"
        assert store.read("a.jpg", 1, 3) == b"yt" and store.version("a.jpg")[1]
        with pytest.raises(MediaError, match="no such object"):
            store.read("none.jpg")
        left = [503, 500]  # trouble that passes
        server.mode = lambda path, own=left: str(own.pop()) if own else "ok"
        assert store.read("a.jpg") == b"bytes" * 100
    with pytest.raises(SettingError, match="s3://a: .*nonsense"):
        Store("s3://a", {"nonsense": 1}).read("b")
    for server.mode in ("500", "503", "garbage", "reset", "truncated", "slow"):
        monkeypatch.setattr(stores, "SECONDS", 0.2 if server.mode == "slow" else 60)
        server.asked.clear()
        with pytest.raises(SourceError, match=r"x/a.jpg: no answer in 4 tries \(.*check that the store runs"):
            http.read("a.jpg")
        assert len(server.asked) in (4, 8)  # aiohttp asks once more by itself where the connection is lost


def test_a_store_that_is_down_stops_a_run_under_every_policy(server, data_base, write_data, qa, tmp_path):
    Image.new("RGB", (9, 5)).save(path := tmp_path / "a.png")
    server.objects["x/a.png"], data = path.read_bytes(), write_data([qa(image="a.png"), qa(), qa(image="none.png")])
    for policy in ("raise", "skip"):
        dataset, server.mode = MultimodalDataset(data_base, data, f"{server.url}/x", on_bad_sample=policy), "500"
        for ask in (dataset.layout, lambda own=dataset: own[0]):
            with pytest.raises(SourceError, match="no answer"):
                ask()
        assert len(dataset[1]["input_ids"])
        server.mode = "ok"  # nothing of it is kept
        assert dataset[0]["num_tiles"]
    assert {row: each.reason for row, each in dataset.lengths(0).complaints.items()} == {2: "image_missing"}
    images = open_images(f"{server.url}/x", tmp_path)
    server.objects["x/deep/a b.png"], server.asked[:] = path.read_bytes(), []
    found = pickle.loads(pickle.dumps(images)).resolve("deep\\a b.png")
    assert image_size(found) == load_image(found).size == (9, 5)
    assert server.asked == [("GET", "x/deep/a b.png", None)]  # once
    for name in ("../a.jpg", "/a.jpg", "s3://a/b.jpg"):
        with pytest.raises(MediaError):
            images.resolve(name)


def test_annotation_files_are_copied_by_version_and_called_by_their_url(server, monkeypatch):
    monkeypatch.setattr(stores, "BLOCK", 10)
    url, name = f"{server.url}/{BUCKET}/a.jsonl", f"{BUCKET}/a.jsonl"
    for server.mode in ("ok", "no ranges"):
        for text in ("one", "two", "two"):
            server.objects[name] = data = json.dumps({"text": text * 9, "at": server.mode}).encode() + b"\n"
            asked = len(server.asked)
            assert open(localize(url, None), "rb").read() == data
        assert len(server.asked) - asked == 1  # unchanged: asked for its version alone

    def edit(path):
        server.objects[name] = data[:-3] + b"%03d" % len(server.asked)
        return "ok"

    unknown, changed = "a.jsonl: the store tells no size, tag or time", "a.jsonl: it has changed while it was fetched"
    wrong = {"no version": unknown, "404": "no such object", "403": "access denied", edit: changed}
    for server.mode, words in wrong.items():
        with pytest.raises((SettingError, SourceError), match=words):
            localize(url, None)
    server.mode, queries = "ok", ("token=hidden&part=1", "part=2")
    for query in queries:
        server.objects[f"a.jsonl.gz?{query}"] = gzip.compress(b'{"a": %s}\n{"a": \n' % query[-1:].encode(), mtime=0)
    first, second = (open_records(f"{server.url}/a.jsonl.gz?{query}") for query in queries)
    assert first.parse(0) == {"a": 1} and second.parse(0) == {"a": 2} and first.path != second.path
    with pytest.raises(DataError, match=r"a.jsonl.gz\?\*\*\*\w{8}:2: not JSON") as refused:
        first.parse(1)
    assert "hidden" not in first.path + str(refused.value)


def test_a_zip_is_read_as_a_folder(tmp_path):
    with zipfile.ZipFile(path := tmp_path / "i.zip", "w") as archive:
        archive.writestr("train/deep/a.jpg", "train/a.jpg")
    images, damaged = open_images(path / "train", tmp_path), bytearray(path.read_bytes())
    key = images.key()
    damaged[damaged.index(b"train/a.jpg")] ^= 1
    path.write_bytes(damaged)
    os.utime(path, ns=(1, 1))
    assert images.key() != key
    for name, words in {"deep": "no such object", "deep/a.jpg": "can't be read from the zip .*CRC"}.items():
        with pytest.raises(MediaError, match=f"i.zip/train/{name}: {words}"):
            _ = open_images(path / "train", tmp_path).resolve(name).data
