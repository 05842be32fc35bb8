"""Two results on the same questions: who is better where, how sure that is, and what else differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import find_metric
from .results import Interval, Measured, Row, are_trials, between, draw, middle, named, number

COLUMNS = ("data set", "metric", "A", "B", "B - A", "95 % interval", "p", "A better", "B better", "questions", "B is")
OF_CARD = "name metric before after gain interval p better_a better_b questions verdict".split()
UNSEEN = "no difference seen"
SURE = 0.05  # a larger p-value is no difference
MUST_AGREE = {
    "hash": "asks other questions or expects other answers than A; measure both on the same file",
    "metric": "has another metric than A; give both the same --metric",
}
Result = tuple[Mapping[str, Any], Sequence[Row]]


@dataclass(frozen=True)
class Comparison:
    """Two models on the common questions of one data set; the first is A, the second B.

    Attributes:
        one: A's answers, measured.
        other: B's, to the same questions in the same order.
        interval: Of B's headline minus A's, at 95 %; None for a single cluster of questions.
        p_value: That this difference is 0; None for a single cluster.
    """

    one: Measured
    other: Measured
    interval: Interval | None
    p_value: float | None

    @property
    def pairs(self) -> list[tuple[Row, Row]]:
        """Rows of A and B, in that order."""
        return list(zip(self.one.rows, self.other.rows, strict=True))

    @property
    def gain(self) -> float:
        """B's headline minus A's."""
        return self.other.headline - self.one.headline

    @property
    def verdict(self) -> str:
        """B is `better` or `worse` where interval and p-value say so, else `UNSEEN`; `unknown` for a single cluster."""
        if self.interval is None:
            return "unknown"
        low, high = self.interval
        if self.p_value >= SURE or low <= 0 <= high:
            return UNSEEN
        return "better" if (low > 0) == self.one.metric.higher_is_better else "worse"

    def sentence(self) -> str:
        """The verdict with its reasons, in one sentence."""
        verdict, questions = self.verdict, f"{len(self.one.questions):,} questions"
        if verdict == "unknown":
            return f"nothing can be said: all {questions} are about one image or of one group"
        points = f"{self.gain:+.1f} points ({between(self.interval)}, {questions})"
        if verdict == UNSEEN:
            return f"{UNSEEN} between A and B: {points}"
        forgot = verdict == "worse" and not any(question.paths for question in self.one.questions)
        return f"B is {verdict} than A: {points}" + (", so it has forgotten what A knows without images" * forgot)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        metric, scores = self.one.metric, list(zip(self.one.scores, self.other.scores, strict=True))
        values = {"metric": metric.name, "headline": metric.headline, "higher_is_better": metric.higher_is_better}
        values |= {"a": self.one.headline, "b": self.other.headline, "gain": self.gain}
        values |= {"interval": self.interval, "p_value": self.p_value, "num_common": len(scores)}
        values |= {"better_a": sum(a > b for a, b in scores), "better_b": sum(b > a for a, b in scores)}
        return {**values, "verdict": self.verdict, "sentence": self.sentence()}


def compare(one: Result, other: Result) -> dict[str, Comparison]:
    """Compares what `read_results` read from two folders, on the questions that both answered, by data set.

    Raises:
        ValueError: They have no scored data set in common, or one of the same name with other questions or another
            metric.
    """
    first, second = one[0]["datasets"], other[0]["datasets"]
    common = [name for name in first if name in second and first[name].get("metric")]
    if not common:
        raise ValueError(f"no scored data set in common: A has {', '.join(first)}, B has {', '.join(second)}")
    for name in common:
        for key, problem in MUST_AGREE.items():
            if first[name].get(key) != second[name].get(key):
                raise ValueError(f"data set {name}: B {problem}")
    return {name: _compare_one(name, first[name]["metric"], one[1], other[1]) for name in common}


def _compare_one(name: str, metric: str, one: Sequence[Row], other: Sequence[Row]) -> Comparison:
    """Compares one data set: the interval is of paired bootstrap draws.

    McNemar's exact test is of the clusters that one of both alone gets right; the bootstrap's p-value is twice the
    share of draws on the rarer side of 0. Few clusters may all lie on one side by chance, so it is never below the
    least that a sign test of those that differ can give, nor below 0.05 where the interval holds 0.
    """
    from scipy.stats import binomtest

    theirs = {row.question.id: row.answer for row in other if row.dataset == name}
    mine = [row for row in one if row.dataset == name and row.question.id in theirs]
    if not mine:
        raise ValueError(f"data set {name}: no question that both answered; run both without --limit")
    measure, questions = find_metric(metric), [row.question for row in mine]
    a = Measured(name, measure, questions, [row.answer for row in mine])
    b = Measured(name, measure, questions, [theirs[question.id] for question in questions])
    if len(a.sums) < 2:
        return Comparison(a, b, None, None)
    drawn, limit = np.subtract(*draw(b.sums, a.sums)), 100 if measure.higher_is_better else np.inf
    interval = middle(drawn, len(a.sums), -limit, limit)
    if are_trials(a.sums) and are_trials(b.sums):
        only = [int((left > right).sum()) for left, right in ((a.sums, b.sums), (b.sums, a.sums))]
        return Comparison(a, b, interval, float(binomtest(only[0], sum(only)).pvalue) if any(only) else 1.0)
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    least = max(2.0 ** (1 - (a.sums != b.sums).any(axis=(1, 2)).sum()), SURE * (interval[0] <= 0 <= interval[1]))
    return Comparison(a, b, interval, float(min(1.0, max(least, 2 * (tail + 1) / (len(drawn) + 1)))))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Settings, dtype, preprocessing and versions that differ between two results.json, each with both values."""
    found = []
    for part in ("settings", "preprocessing", "versions"):
        a, b = one.get(part, {}), other.get(part, {})
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key) and key != "hash"]
        found += [f"{part} {key}: A {a.get(key)}, B {b.get(key)}" for key in keys]
    return found


def comparison_table(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A head and a row per data set, from `Comparison.as_json`."""
    rows = [COLUMNS]
    for name, values in found.items():
        scores = (number(values["a"]), number(values["b"]), f"{values['gain']:+.1f}", between(values["interval"]))
        counts = (f"{values[key]:,}" for key in ("better_a", "better_b", "num_common"))
        rows.append((name, named(values), *scores, p_text(values["p_value"]), *counts, values["verdict"]))
    return rows


def card_rows(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of a model card, where A was measured before and B after training, from `Comparison.as_json`."""
    return [dict(zip(OF_CARD, row, strict=True)) for row in comparison_table(found)[1:]]


def p_text(value: float | None) -> str:
    """A p-value with three digits."""
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
