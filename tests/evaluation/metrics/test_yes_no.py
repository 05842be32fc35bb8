"""POPE's own script: `evaluate.py` of AoiDragon/POPE, repeated in OpenGVLab/InternVL,
internvl_chat/eval/pope/eval_pope.py."""

import pytest

from xtuner_plugins.datasets.errors import RecordError
from xtuner_plugins.evaluation.metrics.yes_no import YesNo, says_no


@pytest.mark.parametrize(
    "answer, no",
    [
        ("No", True),
        ("no, it is green", True),
        ("There is not a dog.", True),
        ("Yes. There is no doubt", False),  # only the first sentence counts
        ("NO", False),  # the script knows "No", "no" and "not"
        ("nothing", False),
        ("yes", False),
        ("", False),
    ],
)
def test_answers_as_the_script_reads_them(answer, no):
    assert says_no(answer) is no


def test_figures_without_categories(make_item):
    items = [make_item(text) for text in ("yes", "yes", "yes", "no", "no", "No")]
    figures = YesNo().figures(["yes", "no", "Yes, it is", "no", "yes", "hm"], items)
    # 2 hits, 1 missed, 2 false, 1 rejected
    assert figures == pytest.approx(
        {"f1": 400 / 7, "accuracy": 50, "precision": 50, "recall": 200 / 3, "yes_ratio": 400 / 6, "unclear": 100 / 6}
    )


def test_figures_are_means_over_categories(make_item):
    metric = YesNo()
    items = [make_item("yes", category=["random", "popular"]), make_item("no", category="random")]
    figures = metric.figures(["yes", "yes"], items)
    assert figures["f1/random"] == pytest.approx(200 / 3) and figures["f1/popular"] == 100
    assert figures["f1"] == pytest.approx((200 / 3 + 100) / 2)
    assert figures["accuracy"] == 75
    assert metric.scores(["yes", "yes"], items) == [1, 0]


def test_never_yes_is_zero_and_no_error(make_item):
    assert YesNo().figures(["no"], [make_item("yes")])["f1"] == 0


def test_a_right_answer_that_is_neither_is_refused(make_item):
    with pytest.raises(RecordError, match=r"\['maybe'\] is neither yes nor no"):
        YesNo().check(make_item("maybe"))
