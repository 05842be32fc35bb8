"""The first stage that differs is named, and what an engine doesn't tell is no agreement."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.inference.compare_engines import STAGES, Ours, Reference, ask_all, compare
from xtuner_plugins.inference.engines import EngineError, Reading
from xtuner_plugins.inference.questions import Question
from xtuner_plugins.inference.session import ChatSession, normalize

CONTEXT, PER_TILE = 9, 2
TILING = DynamicTiling(1, 6, 8, True)
FACTS = SimpleNamespace(
    per_tile=PER_TILE, context_id=CONTEXT, tokenizer=SimpleNamespace(decode=lambda ids: "".join(map(str, ids)))
)


def reference(path="a.png"):
    """Of an image that is cut into 2x1 tiles and a thumbnail."""
    tiles = torch.arange(3 * 3 * 8 * 8).reshape(3, 3, 8, 8).to(torch.uint8)
    return Reference(
        question=Question("a", "What?", ("a.png",), (str(path),)),
        grids=[TILING.grid(900, 450)],
        tiling=TILING,
        tiles=tiles,
        ids=[1, *[CONTEXT] * 6, 2, 3],
        first=torch.tensor([0.5, 0.3, 0.2]).log(),
        by_text={"x": -1.0, "y": -2.0},
        answer="A bus.",
    )


def reading(**changes):
    """What an engine tells that computes the same."""
    own = reference()
    first = {0: own.first[0].item(), 1: own.first[1].item()}
    given = {"answer": own.answer, "num_tokens": 9, "first": first, "ids": own.ids, "pixels": normalize(own.tiles)}
    return Reading(**{**given, **changes})


def stages(**changes):
    found = compare(FACTS, reference(), reading(**changes))
    return found.parts_at, {stage: found.findings[stage].same for stage in STAGES}, found.findings


def test_what_agrees():
    at, same, findings = stages()
    assert at is None and set(same.values()) == {True}
    assert findings["ids"].text == "9, the same" and findings["answer"].text == "the same"


def test_more_tiles():
    """Of the prompt's image tokens, or of its length alone, as llama.cpp and servers tell it."""
    ids = [1, *[CONTEXT] * 14, 2, 3]
    at, same, findings = stages(ids=ids, num_tokens=17, pixels=None)
    assert at == "tiles" and findings["tiles"].text == "7 instead of 3 (2x1 and a thumbnail)"
    assert same["ids"] is False and findings["ids"].text == "17 instead of 9; only image tokens differ"
    at, _, findings = stages(ids=None, num_tokens=17, pixels=None)
    assert at == "tiles" and findings["tiles"].text.endswith("(2x1 and a thumbnail), by the prompt's length")
    assert findings["tiles"].figure == "7 (3)" and findings["ids"].figure == "17 (9)"


def test_other_pixels_in_as_many_tiles():
    turned = normalize(reference().tiles).roll(1, 0)
    at, _, findings = stages(pixels=turned)
    assert at == "tiles" and "3, but other pixels" in findings["tiles"].text
    rounded = reference().tiles.clone()
    rounded[0, 0, 0, 0] += 1
    assert stages(pixels=normalize(rounded))[0] is None


def test_another_prompt():
    at, same, findings = stages(ids=[1, *[CONTEXT] * 6, 7, 3])
    assert at == "ids" and same["tiles"] is True and "part at token 7: '73' instead of '23'" in findings["ids"].text
    # A difference that is no number of tiles is one of the text.
    at, same, findings = stages(ids=None, num_tokens=10, pixels=None)
    assert at == "ids" and same["tiles"] is None and findings["ids"].text.startswith("10 instead of 9")


@pytest.mark.parametrize("first", [{0: -0.70, 1: -1.3}, {0: float("nan")}, {"x": -1.5, "unknown": -9.0}])
def test_other_probabilities(first):
    at, same, _ = stages(first=first)
    assert at == "log probabilities" and same["ids"] is True


def test_probabilities_by_text():
    at, _, findings = stages(first={"x": -1.001, "y": -2.0, "unknown": -9.0})
    assert at is None and findings["log probabilities"].text == "0.001 apart at most, over 2 tokens"


def test_another_answer():
    assert stages(answer="A bug.")[0] == "answer"
    assert stages(answer="A bus.\ufffd")[0] is None


def test_what_is_not_told_is_told():
    at, same, findings = stages(num_tokens=None, ids=None, first=None, pixels=None)
    assert at is None and list(same.values()) == [None, None, None, True]
    assert {findings[stage].text for stage in STAGES[:3]} == {"not told"}
    assert stages(ids=None, pixels=None)[2]["ids"].text == "9, as many; which ones isn't told"


class Seeing:
    """Notes the sizes of the images that it is sent."""

    name, sizes = "seeing", []

    def read(self, question, images, max_new_tokens, top):
        self.sizes.append([image.size for image in images])
        if len(self.sizes) == 2:
            raise EngineError("too large")
        return reading()


def test_all_questions_resized_and_failed(tmp_path):
    Image.fromarray(np.zeros((45, 90, 3), np.uint8)).save(tmp_path / "a.png")
    asked = [reference(tmp_path / "a.png")] * 2
    options = {"max_new_tokens": 4, "tolerance": 0.02}
    first, second = ask_all(Seeing(), FACTS, asked, resize=True, **options)
    assert first.agrees and not second.agrees and (second.failure, second.parts_at) == ("too large", None)
    (third, _) = ask_all(Seeing(), FACTS, asked, resize=False, **options)
    assert third.agrees and Seeing.sizes[1:3] == [[(16, 8)], [(90, 45)]]


def test_our_side(toy_base, tmp_path):
    Image.effect_noise((225, 113), 90).convert("RGB").save(tmp_path / "a.png")
    session = ChatSession.from_pretrained(toy_base, device="cpu")
    ours = Ours(session, max_new_tokens=4)
    found = ours.read(Question("a", "What?", ("a.png",), (str(tmp_path / "a.png"),)))
    assert (found.num_tiles, found.tiles.shape) == (3, (3, 3, 112, 112))
    assert found.ids.count(ours.context_id) == 3 * ours.per_tile and len(found.first) == ours.num_rows
    assert found.first.exp().sum().item() == pytest.approx(1, abs=1e-4)
    # The likeliest first token begins the answer.
    assert found.answer.startswith(session.tokenizer.decode([found.first.argmax()]).strip())
    session.reset()
    assert found.answer == session.ask("What?", tmp_path / "a.png", max_new_tokens=4).strip()
    text_only = ours.read(Question("b", "What?"))
    assert text_only.tiles is None and text_only.grids == [] and len(text_only.first) == ours.num_rows
