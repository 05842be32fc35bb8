"""Answers to a data set's questions, measured: for `tools/evaluate.py`, for validation and for the quick start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .confidence import score_interval
from .items import Item
from .metric import Metric


@dataclass(frozen=True)
class Measured:
    """Answered questions of one data set under its metric.

    Attributes:
        name: Of the data set.
        metric: What measures it.
        items: The questions that have an answer.
        answers: To each of them.
    """

    name: str
    metric: Metric
    items: Sequence[Item]
    answers: Sequence[str]

    @cached_property
    def scores(self) -> list[float]:
        """Of each answer."""
        return [float(score) for score in self.metric.scores(self.answers, self.items)] if self.items else []

    @cached_property
    def tally(self) -> np.ndarray:
        """As `Metric.tally`: [items, K]."""
        return self.metric.tally(self.answers, self.items)

    @cached_property
    def units(self) -> list[list[int]]:
        """As `Metric.units`."""
        return [list(unit) for unit in self.metric.units(self.items)]

    @cached_property
    def figures(self) -> dict[str, float]:
        """As `Metric.figures`; none without answers."""
        return (
            {key: float(value) for key, value in self.metric.figures(self.answers, self.items).items()}
            if self.items
            else {}
        )

    @property
    def headline(self) -> float | None:
        """The figure by which models are compared; None without answers."""
        return self.figures.get(self.metric.headline)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Of the headline, at 95 %; None with fewer than two units."""
        return score_interval(self.metric, self.tally, self.units) if self.items else None


def measure(name: str, metric: Metric, items: Sequence[Item], answers: Mapping[str, str]) -> Measured:
    """Measures those items that have an answer.

    Args:
        name: Of the data set.
        metric: For all of them.
        items: Checked ones.
        answers: By the id of the question.
    """
    answered = [item for item in items if item.question.id in answers]
    return Measured(name, metric, answered, [answers[item.question.id] for item in answered])


def first_units(metric: Metric, items: Sequence[Item], limit: int) -> list[Item]:
    """The first units of a set that make up ``limit`` items or more, in the set's order."""
    taken: set[int] = set()
    for unit in sorted(metric.units(items), key=min):
        if len(taken) >= limit:
            break
        taken.update(unit)
    return [item for position, item in enumerate(items) if position in taken]
