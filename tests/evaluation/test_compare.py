"""Paired comparisons: only of the same questions, with the test that fits the scores, and what else differs."""

import numpy as np
import pytest
from scipy.stats import binomtest

from xtuner_plugins.evaluation.compare import compare, comparison_table, differences, p_text
from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.metrics import find_metric
from xtuner_plugins.evaluation.results import Row
from xtuner_plugins.inference.questions import Question


def results(answers, metric="exact_match", digest="1", name="own", **facts):
    """(results.json, rows) of answers by question id, where "yes" is right."""
    measure, rows = find_metric(metric), []
    for number, (key, answer) in enumerate(answers.items()):
        own = {key: value[number] if isinstance(value, list) else value for key, value in facts.items()}
        expected = own.pop("expected", "A" if "choices" in own else "yes")
        item = Item(Question(key, "?"), (expected,), own)
        rows.append(Row(name, item, answer, float(measure.score(answer, item))))
    return {"datasets": {name: {"hash": digest, "metric": metric}}}, rows


def compare_one(one, other):
    (found,) = compare(one, other).values()
    return found


def test_who_wins_where():
    one = results({f"q{n}": "yes" if n < 12 else "no" for n in range(20)})
    other = results({f"q{n}": "yes" if n in (0, 1, *range(3, 20)) else "no" for n in range(20)})
    found = compare_one(one, other)
    assert found.one.headline == 60 and found.other.headline == 95 and found.gain == pytest.approx(35)
    assert found.p_value == pytest.approx(binomtest(1, 9).pvalue) and 0 < found.interval[0] < 35 < found.interval[1]
    values = found.as_json()
    assert (values["better_a"], values["better_b"], values["test"]) == (1, 8, "mcnemar")
    back = compare_one(other, one)
    assert back.gain == pytest.approx(-35) and back.p_value == found.p_value
    line = comparison_table({"own": values})[1]
    assert line[:5] == ("own", "exact_match: accuracy", "60.0", "95.0", "+35.0")
    assert line[-5:] == ("0.039", "1", "8", "20", "better")


def test_a_p_value_is_of_the_number_beside_it():
    """Always yes against always no: as many right answers, and quite another F1."""
    truth = ["yes", "no"] * 50
    one = results({str(n): "yes" for n in range(100)}, "yes_no", expected=truth)
    other = results({str(n): "no" for n in range(100)}, "yes_no", expected=truth)
    found = compare_one(one, other)
    assert found.gain == pytest.approx(-200 / 3) and found.test == "bootstrap" and found.p_value < 0.001
    assert found.interval[0] < -200 / 3 < found.interval[1] < 0
    texts = ({n: "yess" if n and other else "yes" for n in range(9)} for other in (False, True))
    found = compare_one(*(results(each, "anls") for each in texts))  # in none of 2000 draws A isn't better
    assert found.test == "bootstrap" and found.p_value == pytest.approx(2 / 2001)


def test_no_difference_is_not_surely_none():
    answers = {str(n): "yes" if np.random.default_rng(n).random() < 0.5 else "no" for n in range(30)}
    found = compare_one(results(answers), results(answers))
    unseen = 100 * binomtest(0, 30).proportion_ci().high
    assert found.p_value == 1 and found.interval == pytest.approx((-unseen, unseen))
    assert compare_one(results(answers, "yes_no"), results(answers, "yes_no")).p_value == 1
    assert compare_one(results({"a": "yes"}), results({"a": "no"})).interval is None


def test_only_common_questions_in_whatever_order():
    one = results({"a": "yes", "b": "yes", "c": "no"})
    other = results({"d": "yes", "b": "no", "a": "yes"})
    found = compare_one(one, other)
    assert [row.item.question.id for row, _ in found.pairs] == ["a", "b"]
    assert found.one.answers == ["yes", "yes"] and found.other.answers == ["yes", "no"]


def test_questions_of_a_group_count_once():
    """Four rotations that all become right are one gain, not four."""
    facts = {"choices": {"A": "x", "B": "y"}, "group": [str(n // 4) for n in range(16)]}
    one = results({f"q{n}": "B" for n in range(16)}, "multiple_choice", **facts)
    other = results({f"q{n}": "A" for n in range(16)}, "multiple_choice", **facts)
    found = compare_one(one, other)
    assert found.p_value == pytest.approx(2 / 2**4) and found.as_json()["better_b"] == 16


VERDICTS = [
    # metric, expected, answers of A and of B, verdict, what the sentence begins with
    ("exact_match", "no yes", "yes yes", "better", "B is better than A: +50.0 points ("),
    ("exact_match", "yes yes", "no yes", "worse", "B is worse than A: -50.0 points ("),
    ("exact_match", "yes no", "yes no", "equal", "no difference between A and B can be seen: +0.0 points ("),
    ("cer", "yes yes", "no yes", "worse", "B is worse than A: +50.0 points ("),  # of an error rate more is worse
    ("cer", "no yes", "yes yes", "better", "B is better than A: -50.0 points ("),
]


def test_the_verdict():
    """Of forty questions; each pair of words is repeated twenty times."""
    for metric, one, other, verdict, sentence in VERDICTS:
        found = compare_one(*(results(dict(enumerate(words.split() * 20)), metric) for words in (one, other)))
        assert found.verdict == verdict == found.as_json()["verdict"]
        assert found.sentence().startswith(sentence) and ", 40 questions)" in found.sentence()
        assert ("forgotten what A knows without images" in found.sentence()) == (verdict == "worse")
    # Five of forty that all become wrong have an interval below 0 and p = 0.0625; six have p = 0.03.
    for losses, verdict in ((5, "equal"), (6, "worse")):
        one = results({n: "yes" for n in range(40)})
        found = compare_one(one, results({n: "no" if n < losses else "yes" for n in range(40)}))
        assert found.interval[1] < 0 and found.p_value == pytest.approx(2 / 2**losses) and found.verdict == verdict
    found = compare_one(results({1: "yes", 2: "yes"}, group="a"), results({1: "no", 2: "no"}, group="a"))
    assert found.verdict == "unknown" and "all 2 questions are about one image or of one group" in found.sentence()


def test_other_data_is_refused():
    one = results({"a": "yes"})
    for other, message in (
        (results({"a": "yes"}, digest="2"), "own: B asks other questions or expects other answers than A; measure"),
        (results({"a": "yes"}, "anls"), "own: B has another metric than A; give both the same --metric"),
        (results({"a": "yes"}, name="mine"), "no scored data set in common: A has own, B has mine"),
        (results({"b": "yes"}), "own: no question that both answered; run both without --limit"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(one, other)


def test_other_settings_are_named():
    one = {"settings": {"dtype": "float32", "limit": None}, "preprocessing": {"hash": "1", "max_tiles": 6}}
    other = {"settings": {"dtype": "bfloat16", "limit": None}, "preprocessing": {"hash": "2", "max_tiles": 12}}
    one["versions"], other["versions"] = {"torch": "2.5"}, {"torch": "2.6"}
    assert differences(one, one) == []
    assert differences(one, other) == [
        "settings dtype: A float32, B bfloat16",
        "preprocessing max_tiles: A 6, B 12",
        "versions torch: A 2.5, B 2.6",
    ]
    assert [p_text(each) for each in (None, 0.0001, 0.0316)] == ["-", "< 0.001", "0.032"]
