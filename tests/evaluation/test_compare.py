"""Paired comparisons: only of the same questions, with the test that fits the scores."""

import pytest
from scipy.stats import binomtest

from xtuner_plugins.evaluation.compare import as_json, compare
from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.metrics import find_metric
from xtuner_plugins.evaluation.results import Row
from xtuner_plugins.inference.questions import Question


def results(answers, metric="exact_match", digest="1", name="own", **facts):
    """(results.json, rows) of answers by question id, where "yes" is right."""
    measure, rows = find_metric(metric), []
    for number, (key, answer) in enumerate(answers.items()):
        own = {key: value[number] if isinstance(value, list) else value for key, value in facts.items()}
        item = Item(Question(key, "?"), ("A" if "choices" in own else "yes",), own)
        rows.append(Row(name, item, answer, float(measure.scores([answer], [item])[0]), ()))
    found = {"hash": digest, "metric": metric}
    return {"datasets": {name: found}}, rows


def test_who_wins_where():
    one = results({f"q{n}": "yes" if n < 12 else "no" for n in range(20)})
    other = results({f"q{n}": "yes" if n in (0, 1, *range(3, 20)) else "no" for n in range(20)})
    (found,) = compare(one, other)
    assert (found.better_one, found.better_other, found.test) == (1, 8, "mcnemar")
    assert found.one.headline == 60 and found.other.headline == 95 and found.gain == pytest.approx(35)
    assert found.p_value == pytest.approx(binomtest(1, 9).pvalue) and found.interval[0] > 0
    again = as_json(compare(other, one))["own"]
    assert again["gain"] == pytest.approx(-35) and again["p_value"] == found.p_value and again["better_a"] == 8


def test_only_common_questions_in_whatever_order():
    one = results({"a": "yes", "b": "yes", "c": "no"})
    other = results({"d": "yes", "b": "no", "a": "yes"})
    (found,) = compare(one, other)
    assert [row.item.question.id for row, _ in found.pairs] == ["a", "b"]
    assert found.one.answers == ["yes", "yes"] and found.other.answers == ["yes", "no"]


def test_questions_of_a_group_count_once():
    """Four rotations that all become right are one gain, not four."""
    facts = {"choices": {"A": "x", "B": "y"}, "group": [str(n // 4) for n in range(16)]}
    one = results({f"q{n}": "B" for n in range(16)}, "multiple_choice", **facts)
    other = results({f"q{n}": "A" for n in range(16)}, "multiple_choice", **facts)
    (found,) = compare(one, other)
    assert found.p_value == pytest.approx(2 / 2**4) and found.better_other == 16


def test_scores_between_right_and_wrong_take_the_bootstrap():
    one = results({f"q{n}": "yes" for n in range(9)}, "anls")
    other = results({f"q{n}": "yess" for n in range(9)}, "anls")
    (found,) = compare(one, other)
    assert found.test == "bootstrap" and found.p_value < 0.01 and found.interval[1] < 0


def test_other_data_is_refused():
    one = results({"a": "yes"})
    for other, message in (
        (
            results({"a": "yes"}, digest="2"),
            "own: B asks other questions or expects other answers than A; measure both",
        ),
        (results({"a": "yes"}, "anls"), "own: B has another metric than A; give both the same --metric"),
        (results({"a": "yes"}, name="mine"), "no data set in common: A has own, B has mine"),
        (results({"b": "yes"}), "own: no question that both answered; run both without --limit"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(one, other)
