"""A second start, in a fresh process, forgets nothing of what stopped the first one."""

import re

import pytest
from PIL import Image

from ..forked import train_forked
from ..parallel_case import write_dataset

CONFIG = "configs/toy/toy_finetune_packed.py"


@pytest.mark.slow
def test_every_missing_image_stops_every_start_until_all_are_there(toy_base, tmp_path):
    """Half of the images are missing. One is fetched after the first start: the others still stop the second."""
    data = write_dataset(tmp_path / "data", 16, text_only=lambda index: False)
    missing = [data[1] / f"{index}.png" for index in range(8, 16)]
    sizes = {path: Image.open(path).size for path in missing}
    for path in missing:
        path.unlink()
    options = {"train_dataloader.batch_size": 1}

    def start():
        done = train_forked(tmp_path / "run", toy_base, data, config=CONFIG, options=options)
        return done.ok, done.output

    ok, output = start()
    assert not ok and "train.jsonl:9" in output and re.search(r"\b8 (of|records|samples)\b", output), output[-2000:]
    Image.new("RGB", sizes[missing[0]]).save(missing[0])
    ok, output = start()
    assert not ok and "train.jsonl:10" in output and "train.jsonl:9:" not in output, output[-2000:]
    for path in missing[1:]:
        Image.new("RGB", sizes[path]).save(path)
    ok, output = start()
    assert ok and "16 of 16 samples" in output, output[-2000:]
