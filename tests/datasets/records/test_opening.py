"""Every form of source gives the same samples, lengths, fates and complaints as jsonl and a folder; damaged, errors."""

import gzip
import os
import pickle
from functools import partial

import pytest
from torch.utils.data import DataLoader

from tests.datasets.source_kinds import KINDS, make_images, make_records, write_plain, write_table
from xtuner_plugins.audit.check import check_dataset, write_reject_list
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.errors import SettingError

COMPLAINTS = {4: "image_unreadable", 6: "no_conversations"}  # of the records


def facts(sample: dict) -> dict:
    """A sample without its places, to be compared."""
    plain = {key: value for key, value in sample.items() if key not in ("source", "message", "dataset")}
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in plain.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_is_equal(kind, data_base, tmp_path):
    images, opened = make_images(tmp_path / "images"), []
    for write in (KINDS[kind], write_plain):
        written = write(make_records(), images, tmp_path)
        opened.append(partial(MultimodalDataset, str(data_base), **written, on_bad_sample="skip", max_length=120))
    for fast in (False, True):
        found, plain = (open_kind(fast_decoding=fast) for open_kind in opened)
        expected = [facts(sample) for sample in plain]
        assert [facts(sample) for sample in found] == expected and len(found) == len(plain) == 8
        assert [expected[row].get("dropped") for row in range(8)] == [COMPLAINTS.get(row) for row in range(8)]
        assert {found[index]["fate"] for index in (0, 3)} == {"fits", "truncate_text"}
    loader = DataLoader(found, batch_size=None, num_workers=2)  # what is opened here is opened again there
    assert [facts(sample) for sample in loader] == expected
    source = found.sources[0]
    assert len(pickle.dumps((source.index, source.folder))) < 4000  # it crosses to workers
    for mine, theirs in zip(found.layout(num_workers=0), plain.layout(num_workers=0), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert {row: each.reason for row, each in found.lengths(0).complaints.items()} == COMPLAINTS
    again, said = opened[0](), []
    assert again.is_measured() and again.lengths(0).holds(again.measuring(0))

    (report,) = check_dataset(again, num_workers=0, say=lambda report, each: said.append(report.message(each)))
    assert {row: each.reason for row, each in report.left_out.items()} == COMPLAINTS
    assert [each.split(": ")[0] for each in said] == [source.index.source(row) for row in COMPLAINTS]
    assert write_reject_list(tmp_path / "bad.jsonl", [report]) == 2
    without = opened[0](reject_list=str(tmp_path / "bad.jsonl"), on_bad_sample="raise")
    assert [index for index in range(8) if "dropped" in without[index]] == [*COMPLAINTS]


SHARDS = [  # files, what is named, complaint
    ("train-00000-of-00002.parquet", "", "1 of the 2 shards of 'train' are missing"),
    ("train-0.parquet test-0.parquet", "", "several splits .test, train."),
    ("train-0.parquet test-0.parquet", "/*.parquet", "several splits"),
    ("a.parquet b.tar", "", "holds no shards of one kind"),
    ("", "/none.jsonl", "none.jsonl:1: .*can't be read .No such file"),
    ("", "/../cut.jsonl.gz", "cut.jsonl.gz:1: can't be unpacked .*fetch the file again"),
    ("", "/../pipe.jsonl", "pipe.jsonl: is no file but a pipe"),
]


def test_what_names_no_records_is_refused_and_shards_are_sorted_as_numbers(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 100)[:20])
    for number, (names, entry, said) in enumerate(SHARDS):
        (folder := tmp_path / str(number)).mkdir()
        for name in names.split():
            write_table([{"id": "x"}], folder / name)
        with pytest.raises(SettingError, match=said):
            open_records(f"{folder}{entry}")
    for number in (10, 9, 100):
        write_table([{"id": str(number)}], tmp_path / f"a-{number}-of-200.parquet")  # a part of the set, by a pattern
    records = open_records(f"{tmp_path}/*.parquet")
    assert [records.parse(row)["id"] for row in range(3)] == ["9", "10", "100"]
