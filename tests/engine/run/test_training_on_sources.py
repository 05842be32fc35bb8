"""A run gives the same losses whatever its data lie in, also where it is stopped and goes on."""

import json

import pytest

from tests.datasets.source_kinds import write_parquet, write_saved, write_webdataset, write_zip

from ..forked import train_forked
from ..parallel_case import logged, write_dataset

OPTIONS = {"train_dataloader.num_workers": 2, "default_hooks.checkpoint.interval": 2}


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_parquet, write_saved, write_webdataset, write_zip])
def test_same_losses_as_on_files(write, toy_base, tmp_path):
    path, images = write_dataset(tmp_path / "data", 16)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    source = write(records, images, tmp_path)
    other = (source["data_paths"], source.get("image_folders") or images)
    options = OPTIONS
    assert train_forked(tmp_path / "files", toy_base, (path, images), options=options).ok
    run = train_forked(tmp_path / "source", toy_base, other, options=options)
    assert run.ok, run.output[-2000:]
    expected = logged(tmp_path / "files")
    assert logged(tmp_path / "source") == expected and len(expected) == 4
    halfway = ("--resume", str(tmp_path / "source" / "iter_2.pth"))
    again = train_forked(tmp_path / "again", toy_base, other, options=options, extra=halfway)
    assert again.ok and logged(tmp_path / "again") == expected[2:]
