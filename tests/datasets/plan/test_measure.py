"""One pass over the records of a file: what it counts, and what decides the key of the result."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xtuner_plugins.datasets.images.media import ImageFolder
from xtuner_plugins.datasets.plan.measure import Measure
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.text.conversation import encode
from xtuner_plugins.datasets.text.templates import get_template


@pytest.fixture
def task(write_data, six_records, text_tokenizer, tmp_path):
    """Of six records the second misses its image and the fifth is none."""
    folder = ImageFolder(tmp_path / "images")
    return Measure(open_records(write_data(six_records)), folder, get_template("internvl2_5"), text_tokenizer, 8)


def test_counts_are_those_of_the_tokenized_records(task):
    found = task.rows(range(6))
    assert found["num_media"].tolist() == [1, 0, 1, 0, 0, 2]
    assert found["sizes"].tolist() == [[100, 90], [360, 120], [100, 90], [360, 120]]
    assert [complaint[:2] for complaint in found["complaints"]] == [(1, "image_missing"), (4, "no_conversations")]
    assert found["text_tokens"][[1, 4]].tolist() == [0, 0]
    for row in (0, 3, 5):
        record = parse_record(task.index.parse(row), "f:1")
        sample = encode(record, task.template, task.tokenizer, [0] * len(record.media), 0)
        learned = np.flatnonzero(sample.labels != -100)
        images = len(record.media)
        assert found["text_tokens"][row] == len(sample) - 2 * images
        assert found["supervised"][row] == len(learned)
        assert found["prefix"][row].tolist() == [learned[0] - 2 * images, images]


def test_the_key_changes_with_everything_that_is_measured(task, tmp_path):
    def key(**changes):
        return replace(task, **changes).key()

    (tmp_path / "other").mkdir()
    copied = Path(shutil.copy(task.index.path, tmp_path / "other" / "copy.jsonl"))
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text(json.dumps(task.index.parse(0)))
    different = [
        key(),
        key(index=open_records(shorter)),
        key(folder=ImageFolder(tmp_path)),
        key(folder=ImageFolder(None, tmp_path)),
        key(template=get_template("Hermes-2")),
        key(num_frames=4),
    ]
    assert len(set(different)) == len(different)
    assert key(index=open_records(copied)) == key()  # of the file only its content counts
