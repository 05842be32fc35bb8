"""What every metric is: a score per item, and the figures of a whole set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from .items import Item


class Metric(Protocol):
    """A measure of answers.

    Attributes:
        name: As on the command line and in results.json.
        headline: The key of `figures` by which models are compared.
    """

    name: str
    headline: str

    def check(self, item: Item) -> None:
        """Raises DataError, naming what is missing, if the item can't be measured by this metric."""

    def score(self, answer: str, item: Item) -> float:
        """How good one answer is, in [0, 1] where the metric allows it; what pages show beside the answer."""

    def figures(self, answers: Sequence[str], items: Sequence[Item]) -> Mapping[str, float]:
        """The figures of a set, in the field's usual unit (percent where it is customary)."""

    def units(self, items: Sequence[Item]) -> Sequence[Sequence[int]]:
        """The item positions that a bootstrap draws together: one each, or the items of a `group`."""
