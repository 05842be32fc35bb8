"""The toy pairs: what is preferred to what, and that nothing but the blur gives the small signs away."""

import json

import pytest
from PIL import Image

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.datasets.records.pairs import parse_pair
from xtuner_plugins.toy.images import TILE
from xtuner_plugins.toy.preference_data import SHRUNK, UNREADABLE, write_pairs


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    write_pairs(root, {"pairs": 12, "test": 6}, workers=1)
    return root


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_preferred(written):
    records = read(written / "pairs.jsonl")
    about_number = [record for record in records if "number" in record["question"]]
    assert len(about_number) == 16 and len(records) == 24  # 12 scenes; 4 of them in both sizes, with another question
    for record in records:
        parse_pair(record, "pairs.jsonl:1")
        if record not in about_number:
            assert UNREADABLE not in (record["chosen"], record["rejected"])
        elif "small" in record["image"]:
            assert record["chosen"] == UNREADABLE and record["rejected"].isdigit()
        else:
            assert record["chosen"].isdigit() and record["chosen"] != record["rejected"]
    large = [record["rejected"] for record in about_number if "small" not in record["image"]]
    assert UNREADABLE in large and any(len(rejected) == 2 and rejected.isdigit() for rejected in large)


def test_both_sizes_are_cut_into_the_same_tiles(written):
    tiling = DynamicTiling(max_tiles=6, tile_size=TILE)
    for path in sorted((written / "images/test").glob("*_small.jpg")):
        small, large = Image.open(path), Image.open(str(path).replace("_small", ""))
        assert tiling.grid(*small.size) == tiling.grid(*large.size)
        assert abs(large.width / SHRUNK - small.width) < 1 > abs(large.height / SHRUNK - small.height)
