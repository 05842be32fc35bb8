"""The records that most training tests use."""

import json

from xtuner_plugins.toy.small_data import write_dataset


def test_named_samples_have_no_image(tmp_path):
    path, images = write_dataset(tmp_path, 6, text_only=lambda index: index > 3)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert ["image" in record for record in records] == [True] * 4 + [False] * 2
    assert all((images / record["image"]).is_file() for record in records[:4])
    assert len({len(record["conversations"][1]["value"]) for record in records}) > 2
