"""Paired comparisons: only of the same questions, with the test that fits the scores, and what else differs."""

import pytest
from scipy.stats import binomtest

from xtuner_plugins.evaluation.compare import compare, comparison_table, differences, p_text
from xtuner_plugins.evaluation.metrics import find_metric
from xtuner_plugins.evaluation.results import Row
from xtuner_plugins.inference.questions import Question


def results(answers, metric="exact_match", digest="1", name="own", **facts):
    """(results.json, rows) of answers in words, by their place or by id; "yes" is right, or what is `expected`."""
    measure, rows = find_metric(metric), []
    known = answers if isinstance(answers, dict) else {str(n): word for n, word in enumerate(answers.split())}
    for number, (key, answer) in enumerate(known.items()):
        own = {name: value[number] if isinstance(value, list) else value for name, value in facts.items()}
        item = Question(key, "?", expected=(own.pop("expected", "yes"),), facts=own)
        rows.append(Row(name, item, answer, float(measure.score(answer, item))))
    return {"datasets": {name: {"hash": digest, "metric": metric}}}, rows


UNSURE = "no difference seen"
UNSEEN = 100 * binomtest(0, 40).proportion_ci().high
LOST = "so it has forgotten what A knows without images"
ROTATED = {"choices": {"A": "x", "B": "y"}, "group": [str(n // 4) for n in range(16)], "expected": "A"}
CASES = [
    # answers of A and of B, metric, facts; gain, p-value, verdict, parts of the sentence
    (12 * "yes " + 8 * "no ", "yes yes no" + 17 * " yes", "exact_match", {},
     35, binomtest(1, 9).pvalue, "better", "B is better than A: +35.0 points ("),
    (20 * "yes no ", 20 * "yes no ", "exact_match", {},
     0, 1, UNSURE, f"no difference seen between A and B: +0.0 points (-{UNSEEN:.1f} to {UNSEEN:.1f}, 40 q"),
    # five of forty that all become wrong have an interval below 0; six have a small p-value, too
    (40 * "yes ", 5 * "no " + 35 * "yes ", "exact_match", {}, -12.5, 2 / 2**5, UNSURE, "no difference"),
    (40 * "yes ", 6 * "no " + 34 * "yes ", "exact_match", {}, -15, 2 / 2**6, "worse", "B is worse than A: -15.0"),
    # of an error rate more is worse
    (20 * "no yes ", 40 * "yes ", "cer", {}, -50, 2 / 2001, "better", "B is better than A: -50.0 points ("),
    # a p-value is of the number beside it: as many right answers, and quite another F1
    (100 * "yes ", 100 * "no ", "yes_no", {"expected": ["yes", "no"] * 50}, -200 / 3, 2 / 2001, "worse", LOST),
    # four rotations that all become right are one gain, not four
    (16 * "B ", 16 * "A ", "multiple_choice", ROTATED, 100, 2 / 2**4, UNSURE, "16 questions)"),
    # no test of two or four clusters is surer than their signs
    ("yea yeas", "yes yes", "anls", {}, 100 * (1 / 3 + 1 / 4) / 2, 2 / 2**2, UNSURE, "2 questions)"),
    (8 * "no ", 8 * "yes ", "exact_match", {"group": [*"aabbccdd"]}, 100, 2 / 2**4, UNSURE, "8 questions)"),
    ("yes yes", "no no", "exact_match", {"group": "a"}, -100, None, "unknown", "all 2 questions are about one"),
]  # fmt: skip


def test_gain_p_value_and_verdict():
    for a, b, metric, facts, gain, p_value, verdict, sentence in CASES:
        (found,) = compare(results(a, metric, **facts), results(b, metric, **facts)).values()
        assert found.gain == pytest.approx(gain) and found.verdict == verdict, (a, b, metric, found)
        assert found.p_value == (p_value and pytest.approx(p_value)) and sentence in found.sentence(), found
        assert (LOST in found.sentence()) == (verdict == "worse")
        if verdict == "unknown":
            assert found.interval is None
        else:
            low, high = found.interval
            assert low <= gain <= high and low < high and (low > 0 or high < 0) == bool(gain), found.interval


def test_one_gain_of_all_questions_is_no_interval_of_width_0():
    """Nine scores of 1/3 that all become 2/3: rounding alone makes draws differ."""
    for number, (p_value, verdict) in {9: (0.05, UNSURE), 40: (2 / 2001, "better")}.items():
        a, b = (results(number * f"{word} ", "anls", expected="abcdef") for word in ("abcxxx", "abcdex"))
        (found,) = compare(a, b).values()
        unseen = 100 * binomtest(0, number).proportion_ci().high
        assert found.interval == pytest.approx((found.gain - unseen, found.gain + unseen)), number
        assert (found.p_value, found.verdict) == (pytest.approx(p_value), verdict), number


def test_only_common_questions_in_whatever_order():
    one, other = results({"a": "yes", "b": "yes", "c": "no"}), results({"d": "yes", "b": "no", "a": "yes"})
    (found,) = compare(one, other).values()
    assert [row.question.id for row, _ in found.pairs] == ["a", "b"]
    assert found.one.answers == ["yes", "yes"] and found.other.answers == ["yes", "no"]
    values = {**found.as_json(), "interval": None}
    assert comparison_table({"own": values})[1] == (
        *("own", "exact_match: accuracy", "100.0", "50.0", "-50.0", "-", "1.000", "1", "0", "2", UNSURE),
    )
    assert [p_text(each) for each in (None, 0.0001, 0.0316)] == ["-", "< 0.001", "0.032"]


def test_other_data_is_refused_and_other_settings_are_named():
    for other, message in (
        (results("yes", digest="2"), "own: B asks other questions or expects other answers than A; measure"),
        (results("yes", "anls"), "own: B has another metric than A; give both the same --metric"),
        (results("yes", name="mine"), "no scored data set in common: A has own, B has mine"),
        (results({"b": "yes"}), "own: no question that both answered; run both without --limit"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(results("yes"), other)
    one = {"settings": {"dtype": "float32", "limit": None}, "preprocessing": {"hash": "1", "max_tiles": 6}}
    other = {"settings": {"dtype": "bfloat16", "limit": None}, "preprocessing": {"hash": "2", "max_tiles": 12}}
    found = differences({**one, "versions": {"torch": "2.5"}}, {**other, "versions": {"torch": "2.6"}})
    wanted = ["settings dtype: A float32, B bfloat16", "preprocessing max_tiles: A 6, B 12"]
    assert found == [*wanted, "versions torch: A 2.5, B 2.6"] and differences(one, one) == []
