"""Character error rate, the metric of reading text: edits divided by the length of the right text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..items import Item
from .averages import Average


class Cer(Average):
    """Edits of the characters of all answers divided by the length of all right texts, in percent.

    It is above 100 where much too much is said.

    Of several right texts the one with the lowest rate counts. Only space around a text is ignored. The score of one
    answer is 1 minus its rate, at least 0.
    """

    name = headline = "cer"
    higher_is_better = False

    def score(self, answer: str, item: Item) -> float:
        edits, length = self._edits(answer, item)
        return max(0.0, 1 - edits / length)

    def tally(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """Rows of (edits, length of the right text)."""
        return np.array([self._edits(answer, item) for answer, item in zip(answers, items, strict=True)], dtype=float)

    @staticmethod
    def _edits(answer: str, item: Item) -> tuple[int, int]:
        from rapidfuzz.distance import Levenshtein

        texts = [text.strip() for text in item.expected if text.strip()]
        counts = [(Levenshtein.distance(text, answer.strip()), len(text)) for text in texts]
        return min(counts, key=lambda count: count[0] / count[1])
