"""Every form of source gives the same samples, lengths, fates and complaints as jsonl and a folder; damaged, errors."""

import gzip
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from tests.datasets.source_kinds import (
    KINDS,
    NEED_SETTINGS,
    make_images,
    make_records,
    write_plain,
    write_table,
    write_webdataset,
)
from xtuner_plugins.audit.check import PlainFiles, check_dataset, write_reject_list
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.errors import DataError, SettingError
from xtuner_plugins.files import split_zip

COMPLAINTS = {4: "image_unreadable", 6: "no_conversations"}  # of the records


@pytest.fixture
def open_kind(data_base, tmp_path):
    """open_kind(name) -> a dataset of the records as this kind; 'plain' is jsonl and a folder."""
    images, written = make_images(tmp_path / "images"), {}

    def open_kind(name: str, **options):
        if name not in written:
            (tmp_path / name).mkdir()
            written[name] = {"plain": write_plain, **KINDS}[name](make_records(), images, tmp_path / name)
        settings = {"on_bad_sample": "skip", "max_length": 120, **options}
        return MultimodalDataset(str(data_base), **written[name], **settings)

    return open_kind


def facts(sample: dict) -> dict:
    """A sample without its places, to be compared."""
    plain = {key: value for key, value in sample.items() if key not in ("source", "message", "dataset")}
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in plain.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_is_equal(open_kind, kind, tmp_path):
    for fast in (False, True):
        found, expected = open_kind(kind, fast_decoding=fast), open_kind("plain", fast_decoding=fast)
        assert len(found) == len(expected) == 8
        assert [facts(found[index]) for index in range(8)] == [facts(expected[index]) for index in range(8)]
        assert [index for index in range(8) if "dropped" in found[index]] == [*COMPLAINTS]
        assert {found[index]["fate"] for index in (0, 3)} == {"fits", "truncate_text"}
    loader = DataLoader(found, batch_size=None, num_workers=2)  # what is opened here is opened again there
    assert [facts(sample) for sample in loader] == [facts(expected[index]) for index in range(8)]
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
    assert [each.split(": ")[0] for each in said] == [source.index.source(row) for row in COMPLAINTS]
    assert write_reject_list(tmp_path / "bad.jsonl", [report]) == 2
    without = open_kind(kind, reject_list=str(tmp_path / "bad.jsonl"), on_bad_sample="raise")
    assert [index for index in range(8) if "dropped" in without[index]] == [*COMPLAINTS]
    if kind not in NEED_SETTINGS:
        plain = PlainFiles([source.index.path], [source.folder.folder])
        assert check_dataset(plain, num_workers=0)[0].complaints.total() == 2


def damage(data: bytes, rng: random.Random) -> bytes:
    if rng.randrange(5) == 0:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        at, length = rng.randrange(len(changed)), rng.choice((1, 2, 4, 8, 60))
        changed[at : at + length] = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["zst", "parquet", "save_to_disk", "webdataset", "images in zip"])
def test_damaged_files_give_samples_or_our_errors(kind, data_base, tmp_path, cache):
    write = {**KINDS, "webdataset": lambda *args: write_webdataset(*args, shards=1)}[kind]
    written, rng, read = (
        write(make_records()[:4], make_images(tmp_path / "images", scale=7), tmp_path),
        random.Random(0),
        [],
    )
    target = Path(split_zip(written.get("image_folders") or "")[0] or written["data_paths"])
    target = next(target.glob("*.arrow")) if target.is_dir() else target
    whole = target.read_bytes()
    for case in range(60):
        shutil.rmtree(cache, ignore_errors=True)
        target.write_bytes(damage(whole, rng) if case else whole)
        os.utime(target, ns=(case, case))
        try:
            dataset = MultimodalDataset(str(data_base), **written, on_bad_sample="skip")
            samples = [dataset[index] for index in range(min(len(dataset), 30))]
            assert not any("\n" in sample.get("message", "") for sample in samples)
            read.append(sum("dropped" not in sample for sample in samples))
        except DataError as error:
            assert str(error)
            read.append(-1)
    assert read[0] == 4 > min(read), "the whole file is read, and a case has damaged something"


SHARDS = [  # files, what is named, complaint
    ("train-00000-of-00002.parquet", "", "1 of the 2 shards of 'train' are missing"),
    ("train-0.parquet test-0.parquet", "", "several splits .test, train."),
    ("train-0.parquet test-0.parquet", "/*.parquet", "several splits"),
    ("a.parquet b.tar", "", "holds no shards of one kind"),
    ("a.parquet b.jsonl", "/*", "holds no shards of one kind"),
    ("", "/*.parquet", "holds no shards"),
    ("", "/none.jsonl", "none.jsonl:1: .*can't be read .No such file"),
    ("", "/../cut.jsonl.gz", "cut.jsonl.gz:1: can't be unpacked .*fetch the file again"),
    ("", "/../pipe.jsonl", "pipe.jsonl: is no file but a pipe"),
]


def test_what_names_no_records_is_refused_and_shards_are_sorted_as_numbers(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 100)[:20])
    for number, (names, entry, said) in enumerate(SHARDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names.split():
            write_table([{"conversations": None, "id": "x"}], folder / name)
        with pytest.raises(SettingError, match=said):
            open_records(f"{folder}{entry}")
    for number in (10, 9, 100):
        write_table([{"id": str(number)}], tmp_path / f"{number}.parquet")
    records = open_records(f"{tmp_path}/*.parquet")
    assert [records.parse(row)["id"] for row in range(3)] == ["9", "10", "100"]
