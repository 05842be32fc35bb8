"""Files become data sets whose questions can't be confused."""

import json

import pytest

from xtuner_plugins.evaluation.data_sets import open_data_sets
from xtuner_plugins.evaluation.metrics import find_metric


def write(path, *records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


RECORDS = [{"id": str(n), "question": f"{n}?", "answer": "yes"} for n in range(4)]


def test_metric_limit_and_what_is_left_out(tmp_path):
    path = write(tmp_path / "own.jsonl", *RECORDS, {"id": "bad", "question": "no answer?"})
    (whole,) = open_data_sets([path])
    assert (whole.name, whole.metric.name, len(whole.items)) == ("own", "exact_match", 4)
    assert [f"{path}:5" in each.message for each in whole.left_out] == [True]
    (part,) = open_data_sets([path], metric="anls", limit=2)
    assert part.metric is find_metric("anls") and len(part.items) == 2 and part.hash == whole.hash
    assert part.asked(part.items[0]).id == "own/0"
    (other,) = open_data_sets([path], prompt="{question} Briefly.")
    assert other.items[0].question.text == "0? Briefly." and other.hash != whole.hash


def test_two_of_one_name_are_refused(tmp_path):
    first, second = (write(tmp_path / folder / "own.jsonl", *RECORDS) for folder in "ab")
    with pytest.raises(ValueError, match="have the same name, 'own'; rename one of them"):
        open_data_sets([first, second])
