"""Which samples train and why others don't, in one line, one error or one entry each."""

import json

import numpy as np
import pytest

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.fates import describe, find_broken, left_out, unusable_error
from xtuner_plugins.datasets.plan.lengths import DROPPED


@pytest.fixture
def dataset(data_base, write_data, qa, tmp_path):
    """Two files, the second twice: long, cut, rejected, empty and broken records beside usable ones."""
    first = write_data([qa("A?"), qa("B?", "word " * 200), qa("word " * 200), qa(answer="")], "first.jsonl")
    second = write_data([qa(image="none.png"), *[{"text": number} for number in range(6)], qa()], "second.jsonl")
    rejected = tmp_path / "rejected.jsonl"
    rejected.write_text(json.dumps({"file": second, "row": 6}))
    return MultimodalDataset(
        data_base,
        [first, second],
        repeat_times=[1, 2],
        max_length=150,
        on_bad_sample="skip",
        cache_dir=str(tmp_path / "cache"),
        reject_list=str(rejected),
    )


def test_the_line_before_training(dataset):
    fates = dataset.layout(num_workers=0)[2]
    assert describe(dataset, fates) == (
        "data: 4 of 20 samples will train; left out: 10 no_conversations, 2 rejected, 2 image_missing, 1 too_long, "
        "1 empty_answer; of those that train, 1 with their end cut off to fit it"
    )
    assert describe(dataset) == (
        "data: 18 of 20 samples will be tried (2 rejected); unusable ones aren't known before they are met "
        "(on_bad_sample='skip'): tools/check_data.py finds them all"
    )


def test_broken_are_those_that_nobody_left_out_on_purpose(dataset):
    fates = dataset.layout(num_workers=0)[2]
    assert find_broken(dataset, fates).tolist() == [*range(4, 10), *range(12, 18)]
    assert find_broken(dataset, np.zeros(20, np.uint8)).tolist() == []


def test_one_error_names_the_first_of_many_records(dataset):
    dataset.layout(num_workers=0)
    lines = str(unusable_error(dataset, np.array([*range(4, 10), *range(12, 18)]))).splitlines()
    assert lines[0] == "6 records can't be used:" and len(lines) == 7
    assert "second.jsonl:1: " in lines[1] and "none.png" in lines[1] and "second.jsonl:5: " in lines[5]
    assert lines[6].startswith("and 1 more; mend them, or leave them out: reject_list")
    alone = unusable_error(dataset, np.array([5, 13]))
    assert "\n" not in str(alone) and "second.jsonl:2: " in str(alone) and alone.reason == "no_conversations"


def test_every_sample_left_out_has_an_entry_with_its_reason(dataset):
    fates = dataset.layout(num_workers=0)[2]
    entries = left_out(dataset, fates)
    assert [entry["index"] for entry in entries] == np.flatnonzero(fates >= DROPPED).tolist()
    reasons = {entry["index"]: entry["dropped"] for entry in entries}
    assert (reasons[2], reasons[3], reasons[4], reasons[5]) == (
        "too_long",
        "empty_answer",
        "image_missing",
        "no_conversations",
    )
    assert reasons[10] == reasons[18] == "rejected" and {entry["dataset"] for entry in entries} == {"first", "second"}
    assert "first.jsonl:3: too long even with one tile per image" in entries[0]["message"]
