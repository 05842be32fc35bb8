"""What most metrics are: the mean of a score per item, in percent; and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...datasets.errors import RecordError
from ..items import Item


def refuse(item: Item, reason: str, problem: str, remedy: str) -> RecordError:
    """The error of an item that can't be measured; it names the item's file and line, or its id."""
    place = f"{item.place} ({item.question.id})" if item.place else f"question {item.question.id}"
    return RecordError(reason, problem, remedy, place)


def categories_of(item: Item) -> tuple[str, ...]:
    """The categories that an item counts in: none, one or several."""
    category = item.facts.get("category")
    if category is None or category == "":
        return ()
    return tuple(map(str, category)) if isinstance(category, (list, tuple)) else (str(category),)


def by_category(items: Sequence[Item]) -> dict[str, list[int]]:
    """Positions of the items of each category, categories in the order in which they occur."""
    found: dict[str, list[int]] = {}
    for position, item in enumerate(items):
        for category in categories_of(item):
            found.setdefault(category, []).append(position)
    return found


def by_group(items: Sequence[Item]) -> list[list[int]]:
    """Positions of items that count together; an item without a `group` is alone."""
    found: dict[object, list[int]] = {}
    for position, item in enumerate(items):
        group = item.facts.get("group")
        found.setdefault(("alone", position) if group is None else ("group", str(group)), []).append(position)
    return list(found.values())


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole` in percent; 0 where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, dtype=float), np.asarray(whole, dtype=float))
    return 100.0 * np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)


class Average:
    """A metric whose headline is the mean of a score per item, in percent.

    Subclasses give `name`, `headline`, and `score`.
    """

    name: str
    headline: str = "accuracy"
    higher_is_better = True

    def check(self, item: Item) -> None:
        if not any(text.strip() for text in item.expected):
            raise refuse(item, "answer", "no right answer", "give one: 'answer', or a list 'answers'")

    def score(self, answer: str, item: Item) -> float:
        """How good one answer is, in [0, 1]."""
        raise NotImplementedError

    def scores(self, answers: Sequence[str], items: Sequence[Item]) -> list[float]:
        return [float(self.score(answer, item)) for answer, item in zip(answers, items, strict=True)]

    def tally(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """Rows of (score, 1)."""
        scores = np.asarray(self.scores(answers, items), dtype=float)
        return np.stack([scores, np.ones_like(scores)], axis=-1)

    def headline_of(self, sums: np.ndarray) -> np.ndarray:
        return share(sums[..., 0], sums[..., 1])

    def figures(self, answers: Sequence[str], items: Sequence[Item]) -> Mapping[str, float]:
        rows = self.tally(answers, items)
        return {name: float(self.headline_of(rows[places].sum(axis=0))) for name, places in self._parts(items)}

    def _parts(self, items: Sequence[Item]) -> Iterator[tuple[str, Sequence[int]]]:
        """(name of the figure, positions) of the whole set and of each category."""
        yield self.headline, range(len(items))
        for category, places in by_category(items).items():
            yield f"{self.headline}/{category}", places

    def units(self, items: Sequence[Item]) -> list[list[int]]:
        return by_group(items)
