"""The striped squares: what images show, and that a base which saw them answers."""

import random

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.toy import stripes
from xtuner_plugins.toy.images import RGB, TILE


def test_stripes_run_as_said_and_vanish_in_one_tile():
    for way, size in (("down", (TILE // 2, TILE)), ("across", (TILE, TILE // 2))):
        image = stripes.draw("red", way, random.Random(0))
        rows, columns = np.nonzero((np.asarray(image) == RGB["red"]).all(-1))
        assert image.size == (stripes.SIDE, stripes.SIDE) and len(rows) == TILE * TILE // 2
        assert (len(set(columns)), len(set(rows))) == size
        small = image.resize((TILE, TILE), Image.Resampling.BICUBIC)
        middle = small.getpixel((int(columns.mean() / 2), int(rows.mean() / 2)))
        assert middle == pytest.approx([(color + 255) / 2 for color in RGB["red"]], abs=4)  # rounding of bicubic


@pytest.mark.slow
def test_a_trained_base_answers(tmp_path):
    base, rng = stripes.write_trained_base(tmp_path, steps=150), random.Random("test")
    colors = [rng.choice(stripes.COLORS) for _ in range(24)]
    items = [(stripes.QUESTIONS["colour"], [stripes.draw(color, "down", rng)]) for color in colors]
    answers = open_session(base).answers(items, batch_size=8, max_new_tokens=8)
    # Guessing gets 18 of 24 right once in a million tries.
    assert sum(answer == color for answer, color in zip(answers, colors, strict=True)) >= 18
