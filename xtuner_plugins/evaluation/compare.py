"""Two results on the same questions: who is better where, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .confidence import difference, mcnemar
from .measured import Measured
from .metrics import find_metric
from .results import Row


@dataclass(frozen=True)
class Comparison:
    """Two models on the common questions of one data set; the first is A, the second B.

    Attributes:
        name: Of the data set.
        one: A's answers, measured.
        other: B's, to the same items in the same order.
        pairs: Rows of A and B, in that order.
        interval: Of B's headline minus A's, at 95 %; None for a single unit.
        p_value: That there is no difference; None for a single unit.
        test: `mcnemar` where every unit is right or wrong, else `bootstrap`.
    """

    name: str
    one: Measured
    other: Measured
    pairs: Sequence[tuple[Row, Row]]
    interval: tuple[float, float] | None
    p_value: float | None
    test: str

    @property
    def better_one(self) -> int:
        """Questions that A answers better."""
        return sum(a.score > b.score for a, b in self.pairs)

    @property
    def better_other(self) -> int:
        """Questions that B answers better."""
        return sum(b.score > a.score for a, b in self.pairs)

    @property
    def gain(self) -> float:
        """B's headline minus A's."""
        return self.other.headline - self.one.headline


def compare(one: tuple[Mapping, Sequence[Row]], other: tuple[Mapping, Sequence[Row]]) -> list[Comparison]:
    """Compares what `read_results` read from two folders, on the questions that both answered.

    Raises:
        ValueError: They have no data set in common, or one of the same name with other questions or another metric.
    """
    first, second = one[0]["datasets"], other[0]["datasets"]
    common = [name for name in first if name in second]
    if not common:
        raise ValueError(f"no data set in common: A has {', '.join(first)}, B has {', '.join(second)}")
    found = []
    for name in common:
        for key, remedy in (("hash", "measure both on the same file"), ("metric", "give both the same --metric")):
            if first[name].get(key) != second[name].get(key):
                what = "asks other questions or expects other answers" if key == "hash" else "has another metric"
                raise ValueError(f"data set {name}: B {what} than A; {remedy}")
        found.append(_compare_one(name, first[name]["metric"], one[1], other[1]))
    return found


def _compare_one(name: str, metric: str, one: Sequence[Row], other: Sequence[Row]) -> Comparison:
    answered = {row.item.question.id: row for row in other if row.dataset == name}
    pairs = [
        (row, answered[row.item.question.id]) for row in one if row.dataset == name and row.item.question.id in answered
    ]
    if not pairs:
        raise ValueError(f"data set {name}: no question that both answered; run both without --limit")
    measure, items = find_metric(metric), [row.item for row, _ in pairs]
    a, b = (Measured(name, measure, items, [pair[side].answer for pair in pairs]) for side in (0, 1))
    drawn = difference(measure, a.tally, b.tally, a.units)
    interval, p_value = drawn or (None, None)
    test, right = "bootstrap", [_unit_scores(each) for each in (a, b)]
    if set(right[0]) | set(right[1]) <= {0.0, 1.0}:
        test, splits = "mcnemar", list(zip(*right, strict=True))
        p_value = mcnemar(splits.count((1.0, 0.0)), splits.count((0.0, 1.0)))
    return Comparison(name, a, b, pairs, interval, p_value, test)


def _unit_scores(measured: Measured) -> list[float]:
    """The lowest score of each unit: questions that count together are right together."""
    return [min(measured.scores[position] for position in unit) for unit in measured.units]


def as_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Plain values of each data set."""
    return {
        each.name: {
            "metric": each.one.metric.name,
            "headline": each.one.metric.headline,
            "higher_is_better": each.one.metric.higher_is_better,
            "a": each.one.headline,
            "b": each.other.headline,
            "gain": each.gain,
            "interval": each.interval,
            "p_value": each.p_value,
            "test": each.test,
            "num_common": len(each.pairs),
            "better_a": each.better_one,
            "better_b": each.better_other,
        }
        for each in comparisons
    }
