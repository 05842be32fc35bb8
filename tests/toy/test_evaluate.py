"""Scores of held-out questions."""

import pytest

from xtuner_plugins.inference.session import ChatSession
from xtuner_plugins.toy.data import write_data
from xtuner_plugins.toy.evaluate import MODES, answer, is_right, read_questions, score, table


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_data(root, {"pretrain": 0, "train": 0, "test": 2}, workers=1)
    return root


def test_score_and_table_count_what_is_right(root):
    questions = read_questions(root / "test.jsonl")
    right = {q["id"]: q["answer"] for q in questions}
    wrong = {q["id"]: "?" if q["kind"] == "number" else q["answer"] for q in questions}
    scores = score(questions, right)
    assert all(good == asked > 0 for good, asked in scores.values())
    assert score(questions, wrong)["number"][0] == 0
    others = [{"id": "x", "kind": "stripes", "answer": "down"}]  # a kind that the toy language doesn't have comes last
    assert list(score([*others, *questions], {**right, "x": "up"}).items())[-1] == ("stripes", (0, 1))
    text = table(questions, {"tiling": right, "one tile": wrong}, ["number"])
    assert text.splitlines()[1].split() == ["number", "yes", str(scores["number"][1]), "100.0%", "0.0%"]
    assert is_right(" Red. ", "red") and not is_right("dark red", "red") and not is_right("4", "47")


def test_a_session_answers_every_question_in_every_mode(root, toy_base):
    questions = read_questions(root / "test.jsonl")
    answers = answer(ChatSession.from_pretrained(toy_base, device="cpu"), questions, root / "images")
    assert answers.keys() == MODES.keys()
    assert all(given.keys() == {q["id"] for q in questions} for given in answers.values())
    assert answers["tiling"] != answers["one tile"]
