"""What metrics share: means, categories, groups; and what each metric of the table must do."""

import numpy as np
import pytest

from xtuner_plugins.datasets.errors import RecordError, SettingError
from xtuner_plugins.evaluation.metrics import METRICS, find_metric
from xtuner_plugins.evaluation.metrics.averages import by_category, by_group, share

# Metric: right answers and facts of an item that it can measure.
FITTING = {
    "vqa_accuracy": (["red"] * 10, {}),
    "multiple_choice": (["A"], {"choices": {"A": "red", "B": "blue"}}),
    "yes_no": (["yes"], {}),
    "iou": (["<box>[[0, 0, 500, 500]]</box>"], {}),
}
HOSTILE = ["", " ", "\n", "é中文🙂", "a" * 5000, "[" * 300, "(1," * 200, "nan", "inf%", "-", "\0", "[[1e999, 0, 1, 1]]"]


def fitting(name, make_item, **more):
    expected, facts = FITTING.get(name, (["a red sign"], {}))
    return make_item(*expected, **facts | more)


@pytest.mark.parametrize("name", METRICS)
def test_any_answer_has_a_finite_score_and_figures(name, make_item):
    metric, items = METRICS[name], [fitting(name, make_item) for _ in HOSTILE]
    for item in items:
        metric.check(item)
    scores = metric.scores(HOSTILE, items)
    assert len(scores) == len(items) and all(0 <= score <= 10 for score in scores)
    figures = metric.figures(HOSTILE, items)
    assert metric.headline in figures and all(np.isfinite(value) for value in figures.values())
    assert isinstance(next(iter(figures.values())), float)


@pytest.mark.parametrize("name", METRICS)
def test_the_headline_is_that_of_the_added_rows(name, make_item):
    metric = METRICS[name]
    items = [fitting(name, make_item, category=kind) for kind in "abab"]
    answers = [items[0].expected[0], "no", "red", items[3].expected[0]]
    rows = metric.tally(answers, items)
    assert rows.dtype == float and len(rows) == len(items)
    assert metric.headline_of(rows.sum(axis=0)) == pytest.approx(metric.figures(answers, items)[metric.headline])
    draws = np.stack([rows.sum(axis=0), rows[[0, 0, 3, 3]].sum(axis=0)])
    assert metric.headline_of(draws).shape == (2,)


@pytest.mark.parametrize("name", METRICS)
def test_right_answers_are_as_good_as_can_be(name, make_item):
    metric, words = METRICS[name], ["a red sign hangs there", "two blue cars drive along", "one old dog sleeps here"]
    plain = name not in FITTING
    items = [make_item(text) if plain else fitting(name, make_item) for text in words]
    figures = metric.figures([item.expected[0] for item in items], items)
    best = 100.0 if metric.higher_is_better else 0.0
    assert figures[metric.headline] == pytest.approx(best)


@pytest.mark.parametrize("name", METRICS)
def test_an_item_without_a_right_answer_is_refused_by_its_line(name, make_item):
    for item in (make_item(place="own.jsonl:7"), make_item("", place="own.jsonl:7")):
        with pytest.raises(RecordError, match=r"^own\.jsonl:7 \(q\d\): .*;"):
            METRICS[name].check(item)


def test_items_of_a_group_are_drawn_together(make_item):
    items = [make_item("x"), make_item("x", group="g"), make_item("x"), make_item("x", group="g")]
    assert by_group(items) == [[0], [1, 3], [2]]
    for metric in METRICS.values():
        assert metric.units(items) == [[0], [1, 3], [2]]


def test_an_item_may_count_in_several_categories(make_item):
    items = [make_item("x", category=category) for category in (["a", "b"], None, "a", "")]
    assert by_category(items) == {"a": [0, 2], "b": [0]}
    figures = METRICS["exact_match"].figures(["x", "x", "y", "y"], items)
    assert figures == {"accuracy": 50.0, "accuracy/a": 50.0, "accuracy/b": 100.0}


def test_nothing_of_nothing_is_zero():
    assert share(np.array([0.0, 1.0]), np.array([0.0, 4.0])).tolist() == [0.0, 25.0]


def test_an_unknown_metric_is_refused_with_the_nearest():
    assert find_metric("anls") is METRICS["anls"]
    with pytest.raises(SettingError, match="'VQA-acuracy' is unknown; did you mean vqa_accuracy. the metrics are"):
        find_metric("VQA-acuracy")
