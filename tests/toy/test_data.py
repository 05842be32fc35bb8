import collections
import hashlib
import json
import random

import pytest
from PIL import Image

from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.toy import stripes
from xtuner_plugins.toy.data import GRIDS, scene_of, write_data
from xtuner_plugins.toy.language import NUMBER_WORDS, describe
from xtuner_plugins.toy.preference_data import write_pairs
from xtuner_plugins.toy.pretrain import _crowded

COUNTS = {"pretrain": 40, "train": 80, "test": 30, "crossing": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_data(root, COUNTS, workers=1)
    return root


def records(root):
    return {
        "pretrain": json.loads((root / "pretrain.json").read_text()),
        "train": [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()],
        "test": [json.loads(line) for line in (root / "test.jsonl").read_text().splitlines()],
    }


def test_every_record_is_valid_llava_and_its_image_opens(root):
    for split, rows in records(root).items():
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            record = parse_record(row, f"{split}:1")
            assert len(record.media) == ("image" in row)
            for medium in record.media:
                with Image.open(root / "images" / medium.name) as image:
                    image.load()
                    assert image.width % 112 == 0 and image.height % 112 == 0


def test_answers_are_the_truth_of_the_scene(root):
    found = collections.Counter()
    for split in ("train", "test"):
        for row in records(root)[split]:
            if "image" not in row:
                continue
            scene, _ = scene_of(row["id"].split("-")[0], int(row["id"].split("-")[1]))
            turns = [message["value"].replace("<image>\n", "") for message in row["conversations"]]
            for question, answer in zip(turns[::2], turns[1::2], strict=True):
                assert answer == truth(scene, question), (row["id"], question)
                found[question.split()[0]] += 1
    assert set(found) == {"What", "How", "Is"}
    for row in records(root)["pretrain"]:
        scene, _ = scene_of("pretrain", int(row["id"].split("-")[1]))
        assert row["conversations"][1]["value"] == describe(scene)
        assert all(sign.number in describe(scene) for sign in scene.signs)


def truth(scene, question):
    """The answer, from the scene and the question's words alone."""
    if "number" in question:
        (sign,) = scene.signs
        return sign.number
    if question.startswith("How many"):
        return NUMBER_WORDS[len(scene.shapes)]
    kind = question.rstrip("?").split()[-1]
    colors = [shape.color for shape in scene.shapes if shape.kind == kind]
    if question.startswith("Is there"):
        return "yes" if colors else "no"
    (color,) = colors
    return color


def test_the_toy_world_is_always_the_same(root, tmp_path):
    """Scenes, texts of the quick start, of the pairs and of the stripes: figures depend on each draw and its seed."""
    write_pairs(tmp_path / "pairs", {"pairs": 12, "test": 6}, workers=1)
    stripes.write_data(tmp_path / "stripes", {"train": 30, "test": 3})
    found = hashlib.sha256()
    for folder in (root, tmp_path / "pairs", tmp_path / "stripes"):
        for path in sorted(folder.glob("*.json*")):
            found.update(path.read_bytes())
    assert found.hexdigest()[:16] == "f801ef08623b4de6"
    scenes = [scene_of(split, index, seed)[0] for split in GRIDS for index in range(100) for seed in (0, 1)]
    scenes += [_crowded(random.Random(seed)) for seed in range(100)]
    assert hashlib.sha256(repr(scenes).encode()).hexdigest()[:16] == "7063894fc0c678d8"
