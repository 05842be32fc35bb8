"""What every metric is: scores of answers, and the figures of a whole set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from .items import Item


class Metric(Protocol):
    """A measure of answers.

    The headline of a set is computed from sums over its items (`headline_of(tally(answers, items).sum(0))`), so a
    bootstrap draws units and adds up their rows; no answer is measured twice.

    Attributes:
        name: As on the command line and in results.json.
        headline: The key of `figures` by which models are compared.
        higher_is_better: Whether more of the headline is better; False for error rates.
    """

    name: str
    headline: str
    higher_is_better: bool

    def check(self, item: Item) -> None:
        """Raises RecordError, naming what is missing and its place, if the item can't be measured by this metric."""

    def scores(self, answers: Sequence[str], items: Sequence[Item]) -> Sequence[float]:
        """How good each answer is, in [0, 1] where the metric allows it; what pages show beside the answer."""

    def tally(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """What the headline is computed from: float64 [items, K]; K depends on the items alone, not on the answers."""

    def headline_of(self, sums: np.ndarray) -> np.ndarray:
        """The headline of sums of rows of `tally`: [..., K] to [...]."""

    def figures(self, answers: Sequence[str], items: Sequence[Item]) -> Mapping[str, float]:
        """The figures of a set of one item or more, in the field's usual unit (percent where it is customary).

        Those of a category end in `/category`.
        """

    def units(self, items: Sequence[Item]) -> Sequence[Sequence[int]]:
        """The item positions that a bootstrap draws together: one each, or the items of a `group`."""
