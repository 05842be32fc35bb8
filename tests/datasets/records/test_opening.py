"""Every form of source gives the same samples, lengths, fates and complaints as jsonl and a folder."""

import os
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from tests.datasets.source_kinds import KINDS, NEED_SETTINGS, make_images, make_records, write_plain, write_table
from xtuner_plugins.audit.check import PlainFiles, check_dataset, write_reject_list
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.errors import SettingError

BAD = [4, 6]  # of the records
COMPLAINTS = {4: "image_unreadable", 6: "no_conversations"}


@pytest.fixture
def open_kind(data_base, tmp_path):
    """open_kind(name) -> a dataset of the records as this kind; 'plain' is jsonl and a folder."""
    images, written = make_images(tmp_path / "images"), {}

    def open_kind(name: str, **options):
        if name not in written:
            out = tmp_path / name
            out.mkdir()
            written[name] = {"plain": write_plain, **KINDS}[name](make_records(), images, out)
        settings = {"on_bad_sample": "skip", "max_length": 120, **options}
        return MultimodalDataset(str(data_base), **written[name], **settings)

    return open_kind


def assert_equal(found: dict, expected: dict) -> None:
    """Apart from their places, two samples are the same."""
    assert found.keys() == expected.keys()
    for key in found.keys() - {"source", "message", "dataset"}:
        if isinstance(expected[key], torch.Tensor):
            assert torch.equal(found[key], expected[key]), key
        else:
            assert found[key] == expected[key], key


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_is_equal(open_kind, kind, tmp_path):
    for fast in (False, True):
        found, expected = open_kind(kind, fast_decoding=fast), open_kind("plain", fast_decoding=fast)
        assert len(found) == len(expected) == 8
        for index in range(len(expected)):
            assert_equal(found[index], expected[index])
        assert [index for index in range(8) if "dropped" in found[index]] == BAD
        assert {found[index]["fate"] for index in (0, 3)} == {"fits", "truncate_text"}
    source = found.sources[0]
    assert len(pickle.dumps((source.index, source.folder))) < 4000  # it crosses to workers
    for mine, theirs in zip(found.sizes(num_workers=0), expected.sizes(num_workers=0), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert {row: each.reason for row, each in found.lengths(0).complaints.items()} == COMPLAINTS
    again = open_kind(kind)
    assert again.is_measured() and again.lengths(0).holds(again.measuring(0))

    said = []
    (report,) = check_dataset(again, num_workers=0, say=lambda report, each: said.append(report.message(each)))
    assert {row: each.reason for row, each in report.left_out.items()} == COMPLAINTS
    assert [each.split(": ")[0] for each in said] == [source.index.source(row) for row in BAD]
    assert write_reject_list(tmp_path / "bad.jsonl", [report]) == 2
    without = open_kind(kind, reject_list=str(tmp_path / "bad.jsonl"), on_bad_sample="raise")
    assert [index for index in range(8) if "dropped" in without[index]] == BAD
    if kind not in NEED_SETTINGS:
        plain = PlainFiles([source.index.path], [source.folder.folder])
        assert check_dataset(plain, num_workers=0)[0].complaints.total() == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_the_same(open_kind, method):
    expected = open_kind("plain")
    for kind in ("parquet", "save_to_disk", "webdataset shards", "images in zip", "s3", "http"):
        found = open_kind(kind)
        found[3]  # opened in this process, too
        options = {"num_workers": 2, "multiprocessing_context": method, "persistent_workers": True}
        loader = DataLoader(found, batch_size=None, **options)
        for _ in range(2):
            for index, sample in enumerate(loader):
                assert_equal(sample, expected[index])


def test_damaged_compressed_files_are_refused(tmp_path):
    images, out = make_images(tmp_path / "images"), tmp_path
    for suffix in ("gz", "zst"):
        written = KINDS[f"jsonl.{suffix}"](make_records(), images, out)["data_paths"]
        data = open(written, "rb").read()
        for broken in (data[: len(data) // 2], data[:20] + b"\0\1\2\3" + data[24:]):
            open(written, "wb").write(broken)
            with pytest.raises(SettingError, match=f"data.jsonl.{suffix}:1: can't be unpacked .*fetch the file again"):
                open_records(written)
    assert not list((tmp_path / "cache").rglob("data"))


def test_what_is_no_annotation_file_is_said_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, said in [
        ("pipe.jsonl", "pipe.jsonl: is no file but a pipe"),
        ("none.jsonl", "none.jsonl:1: .*can't be read .No such file"),
        ("", "holds no shards of one kind"),
    ]:
        with pytest.raises(SettingError, match=said):
            open_records(tmp_path / name)


def test_parts_of_sets_are_refused_and_shards_sorted_as_numbers(tmp_path):
    for number, (names, entry, said) in enumerate(
        [
            (["train-00000-of-00002.parquet"], "", "1 of the 2 shards of 'train' are missing"),
            (["train-0.parquet", "test-0.parquet"], "", "several splits .test, train."),
            (["train-0.parquet", "test-0.parquet"], "/*.parquet", "several splits"),
            (["a.parquet", "b.tar"], "", "holds no shards of one kind"),
            (["a.parquet", "b.jsonl"], "/*", "holds no shards of one kind"),
            ([], "/*.parquet", "holds no shards"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            write_table([{"conversations": None, "id": "x"}], folder / name)
        with pytest.raises(SettingError, match=said):
            open_records(f"{folder}{entry}")
    for number in (10, 9, 100):
        write_table([{"id": str(number)}], tmp_path / f"{number}.parquet")
    records = open_records(f"{tmp_path}/*.parquet")
    assert [records.parse(row)["id"] for row in range(3)] == ["9", "10", "100"]
