"""Relaxed accuracy (Masry et al., 2022, arXiv:2203.10244, section 5.1), the metric of ChartQA."""

from __future__ import annotations

import math

from ..items import Item
from .averages import Average

TOLERANCE = 0.05  # of the right number


class RelaxedAccuracy(Average):
    """Numbers may be off by 5 percent, texts may not.

    A number with a percent sign is a hundredth of it, as in the published scripts: "5%" is 0.05, so it matches "0.05"
    and not "5". Where the right answer is 0 or no number, the texts are compared, without case.
    """

    name = "relaxed_accuracy"
    headline = "relaxed_accuracy"

    def score(self, answer: str, item: Item) -> float:
        return any(_matches(answer.strip(), text.strip()) for text in item.expected)


def _matches(given: str, expected: str) -> bool:
    wanted, number = _number(expected), _number(given)
    if wanted and number is not None:
        return abs(number - wanted) <= TOLERANCE * abs(wanted)
    return given.lower() == expected.lower()


def _number(text: str) -> float | None:
    """A finite number; None for what is none ("nan" and "inf" are words here)."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
