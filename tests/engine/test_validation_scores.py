"""Scores of a validation are those of its answers; what can't be asked is counted."""

import contextlib
import json

import pytest
import torch
from PIL import Image

from xtuner_plugins.engine.validation_scores import ValidationScores
from xtuner_plugins.inference.opening import open_session


class Network(torch.nn.Module):
    """What the training model has beside its weights."""

    @staticmethod
    def computing(device):
        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def session(toy_base):
    return open_session(toy_base, device="cpu")


def test_scores_are_of_the_answers(session, tmp_path):
    Image.new("RGB", (224, 112), "red").save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no image")
    asked = [("a.png", "What?"), (None, "Hello"), ("bad.png", "Which?")]
    given = session.answers([("What?", [tmp_path / "a.png"]), ("Hello", [])], max_new_tokens=3)
    rows = [
        {"question": text, "answer": answer, **({"image": image} if image else {})}
        for (image, text), answer in zip(asked, [given[0], "something else", "x"], strict=True)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = ValidationScores([str(tmp_path / "own.jsonl")], batch_size=2, max_new_tokens=3)
    found = scores.measure(Network(), session)
    assert found.scalars() == {"val/own/accuracy": 50.0} and found.left_out == 1
    assert found.describe() == "own accuracy 50.0 of 2; left out: 1"
    assert scores.measure(Network(), session, should_stop=lambda: True) is None
