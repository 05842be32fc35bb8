"""The striped squares: what images show, what records ask, and that a base which saw them answers."""

import json
import random

import pytest
from PIL import Image

from xtuner_plugins.inference.session import ChatSession
from xtuner_plugins.toy import evaluate, stripes
from xtuner_plugins.toy.images import RGB, TILE


def test_stripes_run_as_said_and_vanish_in_one_tile():
    for way in stripes.WAYS:
        image = stripes.draw("red", way, random.Random(0))
        assert image.size == (stripes.SIDE, stripes.SIDE) and image.mode == "RGB"
        red = {(x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == RGB["red"]}
        assert len(red) == TILE * TILE // 2
        columns, rows = ({spot[axis] for spot in red} for axis in (0, 1))
        assert (len(columns), len(rows)) == ((TILE // 2, TILE) if way == "down" else (TILE, TILE // 2))
        small = image.resize((TILE, TILE), Image.Resampling.BICUBIC)
        middle = small.getpixel((sum(columns) // len(columns) // 2, sum(rows) // len(rows) // 2))
        halves = [(color + 255) / 2 for color in RGB["red"]]
        assert all(abs(found - half) <= 4 for found, half in zip(middle, halves, strict=True))  # rounding of bicubic


def test_data_are_the_same_for_the_same_seed_and_tell_the_truth(tmp_path):
    files = stripes.write_data(tmp_path / "a", {"train": 30, "test": 3})
    again = stripes.write_data(tmp_path / "b", {"train": 30, "test": 3})
    assert all(files[split].read_bytes() == again[split].read_bytes() for split in files)
    records = [json.loads(line) for line in files["train"].read_text().splitlines()]
    sizes = {record["image"]: Image.open(tmp_path / "a/images" / record["image"]).size[0] for record in records}
    for record in records:  # what has been shrunk isn't asked about its stripes
        asked = [message["value"] for message in record["conversations"] if message["from"] == "human"]
        assert len(asked) == (1 if sizes[record["image"]] == TILE else 2)
        assert asked[0].startswith("<image>\n") and not asked[-1].startswith("<image>\n") or len(asked) == 1
    assert set(sizes.values()) == {TILE, stripes.SIDE}
    questions = evaluate.read_questions(files["test"])
    assert [q["kind"] for q in questions[:2]] in (["colour", "stripes"], ["stripes", "colour"]) and len(questions) == 6
    right = {q["id"]: q["answer"] for q in questions}
    assert evaluate.score(questions, right) == {"colour": (3, 3), "stripes": (3, 3)}


@pytest.mark.slow
def test_a_trained_base_answers(tmp_path):
    base = stripes.write_trained_base(tmp_path, steps=150)
    rng = random.Random("test")
    colors = [rng.choice(stripes.COLORS) for _ in range(24)]
    items = [(stripes.QUESTIONS["colour"], [stripes.draw(color, "down", rng)]) for color in colors]
    answers = ChatSession.from_pretrained(base).answers(items, batch_size=8, max_new_tokens=8)
    # Guessing gets 18 of 24 right once in a million tries.
    assert sum(answer == color for answer, color in zip(answers, colors, strict=True)) >= 18
