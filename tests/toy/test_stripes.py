"""The striped squares: what images show."""

import random

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from xtuner_plugins.export.base.build import build_base
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


def test_the_base_is_trained(tmp_path):
    """Beside the same base without training; AdamW moves a weight by the learning rate a step at most."""
    trained = load_file(stripes.write_trained_base(tmp_path, steps=2) / "model.safetensors")
    build_base(tmp_path / "parts/vision", tmp_path / "parts/llm", tmp_path / "drawn", max_tiles=4, dtype="float32")
    drawn = load_file(tmp_path / "drawn/model.safetensors")
    assert (tmp_path / "base/config.json").read_bytes() == (tmp_path / "drawn/config.json").read_bytes()
    moved = {name: (tensor - drawn[name]).abs().max().item() for name, tensor in trained.items()}
    learns = {name for name in moved if name.startswith(("mlp1.", "language_model."))}
    assert {name for name, most in moved.items() if most} == learns and max(moved.values()) <= 2 * 2e-3
