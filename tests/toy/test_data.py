import collections
import hashlib
import json

import pytest
from PIL import Image

from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.toy import stripes
from xtuner_plugins.toy.data import scene_of, write_data
from xtuner_plugins.toy.language import ACROSS, NUMBER_WORDS, describe
from xtuner_plugins.toy.preference_data import write_pairs

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


def test_of_signs_across_two_tiles_the_number_is_asked(root):
    rows = [row for row in records(root)["test"] if row["kind"] == ACROSS]
    assert len(rows) > 0.8 * COUNTS["crossing"]
    assert {row["image"].split("/")[0] for row in rows} == {"crossing"}
    assert all("number" in row["conversations"][0]["value"] for row in rows)
    in_training = [scene_of("train", index)[0].signs for index in range(400)]
    share = sum(sign.crosses for signs in in_training for sign in signs) / sum(map(len, in_training))
    assert 0.12 < share < 0.3  # a quarter of the images that have a border between columns


def test_the_same_seed_writes_the_same_files_another_does_not(root, tmp_path):
    counts = {"pretrain": 4, "train": 4, "test": 4, "crossing": 0}

    def content(seed, name):
        write_data(tmp_path / name, counts, seed=seed, workers=1)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return [(str(path.relative_to(tmp_path / name)), path.read_bytes()) for path in files]

    first = content(0, "a")
    assert first == content(0, "b") != content(1, "c")
    assert len(first) == 3 + sum("image" in row for part in records(tmp_path / "a").values() for row in part) - (
        len(records(tmp_path / "a")["test"]) - counts["test"]
    )


def test_the_toy_world_is_always_the_same(root, tmp_path):
    """Questions and answers of the quick start, of the pairs and of the stripes: its figures depend on each draw."""
    write_pairs(tmp_path / "pairs", {"pairs": 12, "test": 6}, workers=1)
    stripes.write_data(tmp_path / "stripes", {"train": 30, "test": 3})
    found = hashlib.sha256()
    for folder in (root, tmp_path / "pairs", tmp_path / "stripes"):
        for path in sorted(folder.glob("*.json*")):
            found.update(path.read_bytes())
    assert found.hexdigest()[:16] == "f801ef08623b4de6"
