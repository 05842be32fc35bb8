"""A check goes on where it stopped, and opens again what has changed."""

import json
import os
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from tests.datasets.store_servers import ObjectServer, shared_server
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.audit import chunks, looks
from xtuner_plugins.datasets.audit.check import check_dataset
from xtuner_plugins.datasets.audit.looking import PlainFiles
from xtuner_plugins.datasets.errors import SourceError
from xtuner_plugins.datasets.images.augment import Augmentation
from xtuner_plugins.datasets.images.media import ImageFolder
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.text.templates import get_template


@pytest.fixture
def check(tmp_path, monkeypatch, write_data, make_image, qa):
    """check(**options) -> (tables and troubles, names of the images that were opened, records of an earlier check)."""
    monkeypatch.setattr(chunks, "CHUNK", 2)
    monkeypatch.setattr("xtuner_plugins.datasets.audit.check.CHUNK", 2)
    monkeypatch.setattr(chunks, "CLOCK_STEP", -(10**18))  # files that were written just now count, too
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "cache"))
    for number in range(4):
        folder = make_image(f"{number}.png", 100 + number, 90)
    records = [qa(f"What is {number}?", image=f"{number % 4}.png") for number in range(5)]
    path = write_data([*records, qa(image="none.png"), qa(), {"a": 1}])
    opened = []
    real = looks.load_reduced

    def load(source, *more):
        opened.append(os.path.basename(source))
        return real(source, *more)

    monkeypatch.setattr(looks, "load_reduced", load)

    def call(kind=PlainFiles, **options):
        dataset = kind([path], [folder]) if kind is PlainFiles else kind(*options.pop("base"), [path], folder)
        opened.clear()
        before, done = [], []
        (report,) = check_dataset(
            dataset, num_workers=0, complain=lambda text: None, resume=before.append, progress=done.append, **options
        )
        assert before[0] + sum(done) == 8
        tables = [report.facts.table(name).tolist() for name in chunks.TABLES]
        return [tables, report.troubles], sorted(opened), before[0]

    return call


# What can't be opened is tried again.
EVERYTHING = ["0.png", "1.png", "2.png", "3.png", *["none.png"] * 3]


def test_nothing_is_opened_twice(check):
    first = check()
    assert first[1:] == (EVERYTHING, 0)  # image 0 is in two records, and decoded once
    assert check() == (first[0], [], 8)
    assert check(fresh=True) == (first[0], EVERYTHING, 0)


def test_a_lost_or_broken_part_is_opened_again(check, tmp_path):
    first = check()[0]
    parts = sorted((tmp_path / "cache/checked").glob("*/*.npz"))
    assert [path.name for path in parts] == ["0.npz", "2.npz", "4.npz", "6.npz"]
    parts[0].unlink()
    assert check() == (first, ["0.png", "1.png"], 6)
    whole = parts[1].read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no zip", bytes([whole[0] ^ 1]) + whole[1:]):
        parts[1].write_bytes(content)
        assert check() == (first, ["2.png", "3.png"], 8)


def test_a_changed_image_is_opened_again(check, tmp_path):
    first = check()[0]
    Image.new("RGB", (50, 90)).save(tmp_path / "images/2.png")
    changed, opened, _ = check()
    assert opened == ["2.png", "3.png"] and changed[0][2][2][1] == 50 and first != changed
    os.utime(tmp_path / "images/3.png", (1, 1))  # the same pixels
    assert check()[:2] == (changed, ["2.png", "3.png"])
    (tmp_path / "images/1.png").unlink()
    assert [trouble.reason for trouble in check()[0][1]] == ["image_missing", "image_missing", "no_conversations"]


def test_a_missing_image_that_was_fetched(check, tmp_path):
    check()
    Image.new("RGB", (70, 90)).save(tmp_path / "images/none.png")
    found, opened, _ = check()
    assert opened == ["0.png", "none.png"] and [trouble.reason for trouble in found[1]] == ["no_conversations"]


def test_a_link_out_of_the_folder_that_was_mended(check, tmp_path):
    (tmp_path / "secret.png").write_bytes((tmp_path / "images/0.png").read_bytes())
    (tmp_path / "images/none.png").symlink_to(tmp_path / "secret.png")
    assert [trouble.reason for trouble in check()[0][1]] == ["image_outside", "no_conversations"]
    assert check()[1] == []
    (tmp_path / "images/none.png").unlink()
    (tmp_path / "images/none.png").symlink_to(tmp_path / "images/0.png")
    assert [trouble.reason for trouble in check()[0][1]] == ["no_conversations"]


def test_other_settings_or_records_are_other_results(check, tmp_path, data_base):
    first = check()[0]
    with_tokens = check(MultimodalDataset, base=[str(data_base)])
    assert with_tokens[1:] == (EVERYTHING, 0) and with_tokens[0] != first
    assert check(MultimodalDataset, base=[str(data_base)]) == (with_tokens[0], [], 8)
    data = tmp_path / "data.jsonl"
    lines = data.read_text().splitlines()
    lines[6] = json.dumps({"text": "no conversation"})
    data.write_text("\n".join(lines) + "\n")
    assert check()[1:] == (EVERYTHING, 0)


def test_every_setting_of_a_file_is_part_of_the_key_or_changes_no_check(data_base, write_data, make_image, qa):
    folder = make_image("a.png", 100, 90)
    dataset = MultimodalDataset(str(data_base), [write_data([qa(image="a.png")])], folder)
    source, other = dataset.sources[0], write_data([qa(image="a.png"), qa()], "other.jsonl")
    others = {
        "index": open_records(other, dataset.cache_dir),
        "folder": ImageFolder(None),
        "template": get_template("phi3-chat"),
        "tiling": replace(source.tiling, max_tiles=source.tiling.max_tiles + 1),
    }
    changes_no_check = {"name": "b", "repeat": 2.0, "loss_weight": 0.5, "augment": Augmentation(color=0.5)}
    assert {each.name for each in fields(source)} == others.keys() | changes_no_check.keys()
    key = chunks._key(dataset, 0)
    for name, value in (others | changes_no_check).items():
        dataset.sources[0] = replace(source, **{name: value})
        assert (chunks._key(dataset, 0) != key) == (name in others), name


def test_what_was_written_just_now_is_not_kept(check, monkeypatch, tmp_path):
    """It may change again within a step of the file system's clock."""
    monkeypatch.setattr(chunks, "CLOCK_STEP", 2_000_000_000)
    assert time.time() - (tmp_path / "images/3.png").stat().st_ctime < 2
    first = check()
    assert check()[0] == first[0] and check()[2] == 2  # the last two records have no image


def test_tables_keep_their_types(check):
    check()
    chunk = chunks._read(next(iter(sorted(chunks.Path(os.environ["XTUNER_PLUGINS_CACHE"]).glob("checked/*/0.npz")))))
    assert {name: chunk.facts[name].dtype for name in chunks.TABLES} == chunks.TABLES
    assert isinstance(chunk.facts["records"], np.ndarray)


def test_an_image_that_a_store_has_by_now_is_found(tmp_path, monkeypatch, write_data, qa):
    """Images in stores have no stamps, so nothing about their records is kept."""
    monkeypatch.setattr(chunks, "CLOCK_STEP", -(10**18))
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "cache"))
    server = shared_server()
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    dataset = PlainFiles([write_data([qa(image="a.png"), qa()])], [f"{server.url}/checked-twice"])

    def reasons():
        (report,) = check_dataset(dataset, num_workers=0, complain=lambda text: None)
        return [each.reason for each in report.troubles]

    assert reasons() == ["image_missing"]
    server.objects["checked-twice/a.png"] = (tmp_path / "a.png").read_bytes()
    assert reasons() == []


def test_a_store_that_does_not_answer_ends_the_check(tmp_path, monkeypatch, write_data, qa):
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "cache"))
    server = ObjectServer()
    dataset = PlainFiles([write_data([qa(image="a.png"), qa()])], [f"{server.url}/gone"])
    server.stop()
    monkeypatch.setattr("xtuner_plugins.datasets.stores.PAUSES", (0,))
    with pytest.raises(SourceError, match="no answer"):
        check_dataset(dataset, num_workers=0, complain=lambda text: None)
