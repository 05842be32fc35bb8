"""Yes or no: the metrics of POPE (Li et al., 2023, arXiv:2305.10355)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..items import Item
from .averages import Average, by_category, refuse, share

ANSWERS = ("yes", "no")
_NO = {"No", "no", "not"}


def says_no(answer: str) -> bool:
    """Whether the first sentence contains "no" or "not"; by POPE's own script, everything else says yes."""
    return not _NO.isdisjoint(answer.split(".")[0].replace(",", "").split())


def check_yes_no(item: Item) -> None:
    """Refuse an item whose right answer is neither yes nor no.

    Raises:
        RecordError: It is.
    """
    if len(item.expected) != 1 or item.expected[0].strip().lower() not in ANSWERS:
        raise refuse(item, "answer", f"the right answer {list(item.expected)} is neither yes nor no", "correct it")


class YesNo(Average):
    """F1 of "yes", accuracy, precision, recall and the share of "yes", in percent.

    Each is computed within a category and averaged over them, as POPE's are over random, popular and adversarial.
    POPE takes an answer that says neither for "yes"; `unclear` is the share of answers without any such word.
    """

    name = "yes_no"
    headline = "f1"

    def check(self, item: Item) -> None:
        check_yes_no(item)

    def score(self, answer: str, item: Item) -> float:
        return says_no(answer) == _expects_no(item)

    def tally(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """For each category the answers that are true positives, false positives, false negatives, true negatives."""
        cells = np.zeros((len(items), 4))
        for row, answer, item in zip(cells, answers, items, strict=True):
            row[2 * says_no(answer) + _expects_no(item)] = 1
        parts = by_category(items)
        if not parts:
            return cells
        rows = np.zeros((len(items), len(parts), 4))
        for column, places in enumerate(parts.values()):
            rows[places, column] = cells[places]
        return rows.reshape(len(items), -1)

    def headline_of(self, sums: np.ndarray) -> np.ndarray:
        return _measures(sums)["f1"].mean(axis=-1)

    def figures(self, answers: Sequence[str], items: Sequence[Item]) -> Mapping[str, float]:
        measures = _measures(self.tally(answers, items).sum(axis=0))
        result = {name: float(values.mean()) for name, values in measures.items()}
        result["unclear"] = 100 * float(np.mean([_is_unclear(answer) for answer in answers]))
        for column, category in enumerate(by_category(items)):
            result |= {f"{name}/{category}": float(values[column]) for name, values in measures.items()}
        return result


def _expects_no(item: Item) -> bool:
    return item.expected[0].strip().lower() == "no"


def _is_unclear(answer: str) -> bool:
    words = answer.lower().replace(",", " ").replace(".", " ").split()
    return not {"yes", "no", "not"} & set(words)


def _measures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Measures in percent `[..., categories]` of sums `[..., categories * 4]`."""
    hits, false, missed, rejected = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 4), -1, 0)
    asked = hits + false + missed + rejected
    return {
        "f1": share(2 * hits, 2 * hits + false + missed),
        "accuracy": share(hits + rejected, asked),
        "precision": share(hits, hits + false),
        "recall": share(hits, hits + missed),
        "yes_ratio": share(hits + false, asked),
    }
