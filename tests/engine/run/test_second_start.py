"""A second start, in a fresh process, forgets nothing of what stopped the first one."""

import re

import pytest
from PIL import Image

from ..forked import write_dataset


@pytest.mark.slow
def test_every_missing_image_stops_every_start_until_all_are_there(train, tmp_path):
    """Half of the images are missing. One is fetched after the first start: the others still stop the second."""
    data = write_dataset(tmp_path / "data", 16, text_only=lambda index: False)
    missing = {path: Image.open(path) for path in (data[1] / f"{index}.png" for index in range(8, 16))}
    for path, image in missing.items():
        image.load()
        path.unlink()
    case = dict(leaf="toy_finetune_packed", batch_size=1, data=data)
    said = train("run", codes=(1,), **case).output
    assert "train.jsonl:9" in said and re.search(r"\b8 (of|records|samples)\b", said), said[-2000:]
    for number, (path, image) in enumerate(missing.items()):
        image.save(path)
        if number == 0:
            said = train("run", codes=(1,), **case).output
            assert "train.jsonl:10" in said and "train.jsonl:9:" not in said, said[-2000:]
    assert "16 of 16 samples" in train("run", **case).output
