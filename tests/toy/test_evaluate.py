"""Scores of held-out questions."""

from xtuner_plugins.toy.evaluate import is_right, score, table


def test_score_and_table_count_what_is_right():
    facts = [("stripes", "down"), ("number", "47"), ("colour", "red"), ("number", "11")]  # unknown kinds come last
    questions = [{"id": str(n), "kind": kind, "answer": answer} for n, (kind, answer) in enumerate(facts)]
    right = {q["id"]: q["answer"] for q in questions}
    wrong = {**right, "1": "?", "3": "4", "0": "up"}
    assert list(score(questions, right).items()) == [("number", (2, 2)), ("colour", (1, 1)), ("stripes", (1, 1))]
    assert score(questions, wrong) == {"number": (0, 2), "colour": (1, 1), "stripes": (0, 1)}
    lines = table(questions, {"tiling": right, "one tile": wrong}, ["number"]).splitlines()
    assert lines[1].split() == ["number", "yes", "2", "100.0%", "0.0%"] and lines[2].split()[1] == "no"
    assert is_right(" Red. ", "red") and not is_right("dark red", "red") and not is_right("4", "47")
