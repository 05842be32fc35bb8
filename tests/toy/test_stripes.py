"""The striped squares: what images show, and that a base which saw them answers."""

import random

import pytest
from PIL import Image

from xtuner_plugins.inference.session import ChatSession
from xtuner_plugins.toy import stripes
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


@pytest.mark.slow
def test_a_trained_base_answers(tmp_path):
    base = stripes.write_trained_base(tmp_path, steps=150)
    rng = random.Random("test")
    colors = [rng.choice(stripes.COLORS) for _ in range(24)]
    items = [(stripes.QUESTIONS["colour"], [stripes.draw(color, "down", rng)]) for color in colors]
    answers = ChatSession.from_pretrained(base).answers(items, batch_size=8, max_new_tokens=8)
    # Guessing gets 18 of 24 right once in a million tries.
    assert sum(answer == color for answer, color in zip(answers, colors, strict=True)) >= 18
