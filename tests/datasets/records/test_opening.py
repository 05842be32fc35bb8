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
@pytest.mark.parametrize("fast", [False, True])
def test_samples_are_equal(open_kind, kind, fast):
    found, expected = open_kind(kind, fast_decoding=fast), open_kind("plain", fast_decoding=fast)
    assert len(found) == len(expected) == 8
    for index in range(len(expected)):
        assert_equal(found[index], expected[index])
    assert [index for index in range(8) if "dropped" in found[index]] == BAD
    assert {found[index]["fate"] for index in (0, 3)} == {"fits", "truncate_text"}


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_complaints_are_equal(open_kind, kind):
    found, expected = open_kind(kind), open_kind("plain")
    for mine, theirs in zip(found.sizes(num_workers=0), expected.sizes(num_workers=0), strict=True):
        assert mine.tolist() == theirs.tolist()
    complaints = [
        [(row, each.reason) for row, each in dataset.lengths(0).complaints.items()] for dataset in (found, expected)
    ]
    assert complaints[0] == complaints[1] == [(4, "image_unreadable"), (6, "no_conversations")]
    again = open_kind(kind)
    assert again.is_measured() and again.lengths(0).holds(again.measuring(0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_and_the_reject_list(open_kind, kind, tmp_path):
    dataset, said = open_kind(kind), []
    (report,) = check_dataset(dataset, num_workers=0, say=lambda report, each: said.append(report.message(each)))
    assert {row: each.reason for row, each in report.left_out.items()} == {4: "image_unreadable", 6: "no_conversations"}
    source = dataset.sources[0].index
    assert [each.split(": ")[0] for each in said] == [source.source(row) for row in BAD]
    assert write_reject_list(tmp_path / "bad.jsonl", [report]) == 2
    without = open_kind(kind, reject_list=str(tmp_path / "bad.jsonl"), on_bad_sample="raise")
    assert [index for index in range(8) if "dropped" in without[index]] == BAD
    if kind not in NEED_SETTINGS:
        plain = PlainFiles([dataset.sources[0].index.path], [dataset.sources[0].folder.folder])
        assert check_dataset(plain, num_workers=0)[0].complaints.total() == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_crosses_to_workers_as_a_few_bytes(open_kind, kind):
    dataset = open_kind(kind)
    source = dataset.sources[0]
    dataset[0], dataset[3]
    packed = pickle.dumps((source.index, source.folder))
    assert len(packed) < 4000
    index, folder = pickle.loads(packed)
    theirs, mine = index.parse(0), source.index.parse(0)
    assert theirs.keys() == mine.keys() and theirs.get("conversations") == mine.get("conversations")
    assert index.source(7) == source.index.source(7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["parquet", "save_to_disk", "webdataset", "images in zip", "s3", "http"])
def test_workers_read_the_same(open_kind, kind, method):
    found, expected = open_kind(kind), open_kind("plain")
    found[3]  # opened in this process, too
    loader = DataLoader(found, batch_size=None, num_workers=2, multiprocessing_context=method, persistent_workers=True)
    for _ in range(2):
        for index, sample in enumerate(loader):
            assert_equal(sample, expected[index])


@pytest.mark.parametrize("policy", ["gz", "zst"])
def test_damaged_compressed_files_are_refused(tmp_path, policy):
    images, out = make_images(tmp_path / "images"), tmp_path
    written = KINDS[f"jsonl.{policy}"](make_records(), images, out)["data_paths"]
    data = open(written, "rb").read()
    for broken in (data[: len(data) // 2], data[:20] + b"\0\1\2\3" + data[24:]):
        open(written, "wb").write(broken)
        with pytest.raises(SettingError, match=f"data.jsonl.{policy}:1: can't be unpacked .*fetch the file again"):
            open_records(written)
    assert not list((tmp_path / "cache").rglob("data"))


def test_pipes_folders_and_missing_files_are_said_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(SettingError, match="pipe.jsonl: is no file but a pipe"):
        open_records(tmp_path / "pipe.jsonl")
    with pytest.raises(SettingError, match="none.jsonl:1: .*can't be read .No such file"):
        open_records(tmp_path / "none.jsonl")
    with pytest.raises(SettingError, match="holds no shards of one kind"):
        open_records(tmp_path)


@pytest.mark.parametrize(
    "names, entry, said",
    [
        (["train-00000-of-00002.parquet"], "", "1 of the 2 shards of 'train' are missing"),
        (["train-0.parquet", "test-0.parquet"], "", "several splits .test, train."),
        (["train-0.parquet", "test-0.parquet"], "*.parquet", "several splits"),
        (["a.parquet", "b.tar"], "", "holds no shards of one kind"),
        (["a.parquet", "b.jsonl"], "*", "holds no shards of one kind"),
        ([], "*.parquet", "holds no shards"),
    ],
)
def test_parts_of_sets_are_refused(tmp_path, names, entry, said):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in names:
        write_table([{"conversations": None, "id": "x"}], folder / name)
    with pytest.raises(SettingError, match=said):
        open_records(f"{folder}/{entry}" if entry else folder)


def test_shards_are_sorted_as_numbers(tmp_path):
    for number in (10, 9, 100):
        write_table([{"id": str(number)}], tmp_path / f"{number}.parquet")
    records = open_records(f"{tmp_path}/*.parquet")
    assert [records.parse(row)["id"] for row in range(3)] == ["9", "10", "100"]
