"""Answers become scores and figures; what has no answer is left out of them."""

import numpy as np

from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.measured import first_units, measure
from xtuner_plugins.evaluation.metrics import find_metric
from xtuner_plugins.inference.questions import Question

ITEMS = [
    Item(Question("a", "?"), ("red",), {"category": "color"}),
    Item(Question("b", "?"), ("two",), {"category": "count"}),
    Item(Question("c", "?"), ("blue",), {"category": "color"}),
]


def test_figures_are_over_what_was_answered():
    found = measure("own", find_metric("exact_match"), ITEMS, {"a": "Red", "b": "three", "other": "red"})
    assert found.items == ITEMS[:2] and found.answers == ["Red", "three"] and found.scores == [1.0, 0.0]
    assert found.headline == 50 and found.figures["accuracy/color"] == 100
    assert np.array_equal(found.tally, [[1, 1], [0, 1]]) and found.units == [[0], [1]]
    low, high = found.interval
    assert low == 0 and high == 100


def test_nothing_answered():
    found = measure("own", find_metric("exact_match"), ITEMS, {})
    assert found.scores == [] and found.headline is None and found.interval is None and found.figures == {}


def test_a_limit_keeps_groups_whole():
    metric = find_metric("multiple_choice")
    items = [
        Item(Question(f"q{index}", "?"), ("A",), {"choices": {"A": "x"}, "group": group})
        for index, group in enumerate(["1", "2", "1", "3", "2"])
    ]
    assert [item.question.id for item in first_units(metric, items, 3)] == ["q0", "q1", "q2", "q4"]
    assert [item.question.id for item in first_units(metric, items, 2)] == ["q0", "q2"]
    assert first_units(metric, items, 99) == items
