"""Stand-ins for samples, and the list of records to leave out."""

import json

import pytest
import torch

from xtuner_plugins.datasets import RecordError, SettingError
from xtuner_plugins.datasets.bad_samples import (
    FILLER,
    FILLER_INDEX,
    dropped_sample,
    filler_sample,
    read_reject_list,
)


@pytest.fixture
def sources(planned_dataset):
    return planned_dataset.sources


def test_a_filler_teaches_nothing(planned_dataset):
    sample = filler_sample(112)
    assert len(sample["input_ids"]) == len(sample["labels"]) == 1 and (sample["labels"] == -100).all()
    assert sample["tiles"].shape == (0, 3, 112, 112) and sample["tiles"].dtype == torch.uint8
    assert sample["num_tiles"] == 0 and sample["source"] == FILLER
    assert planned_dataset[FILLER_INDEX].keys() == sample.keys()


def test_a_dropped_sample_says_why():
    sample = dropped_sample(RecordError("json", "not JSON", "mend it", "f:3"), "f:3", 112, 7)
    assert (sample["dropped"], sample["message"], sample["source"]) == ("json", "f:3: not JSON; mend it", "f:3")
    assert sample["max_bad_samples"] == 7 and sample["tiles"].shape == (0, 3, 112, 112)


def test_rows_are_found_by_the_file_behind_the_path(sources, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(sources[0].index.path)
    entries = [{"file": str(link), "row": 3}, {"file": sources[0].index.path, "row": 5}, {"file": "/other", "row": 1}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert read_reject_list(tmp_path / "list.jsonl", sources) == [{3, 5}]
    assert read_reject_list(None, sources) == [frozenset()]


@pytest.mark.parametrize("text", [None, "{", '{"file": "a.jsonl"}', '{"file": "a.jsonl", "row": "x"}', "3"])
def test_what_is_no_reject_list_is_refused(sources, tmp_path, text):
    if text is not None:
        (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(SettingError, match="list.jsonl' can't be read .*write it with tools/check_data.py"):
        read_reject_list(tmp_path / "list.jsonl", sources)
