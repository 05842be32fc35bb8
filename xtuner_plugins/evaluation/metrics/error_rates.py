"""Character and word error rate, the metrics of reading text: edits divided by the length of the right text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..items import Item
from .averages import Average


class _ErrorRate(Average):
    """Edits of all answers divided by the length of all right texts, in percent; above 100 where much too much is said.

    Of several right texts the one with the lowest rate counts. Only space around a text is ignored. The score of one
    answer is 1 minus its rate, at least 0.
    """

    higher_is_better = False

    def score(self, answer: str, item: Item) -> float:
        edits, length = self._edits(answer, item)
        return max(0.0, 1 - edits / length)

    def tally(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """Rows of (edits, length of the right text)."""
        return np.array([self._edits(answer, item) for answer, item in zip(answers, items, strict=True)], dtype=float)

    def _edits(self, answer: str, item: Item) -> tuple[int, int]:
        counts = [self._count(text, answer) for text in item.expected if text.strip()]
        return min(
            ((found.substitutions + found.deletions + found.insertions, _length(found)) for found in counts),
            key=lambda count: count[0] / count[1],
        )

    @staticmethod
    def _count(expected: str, answer: str):
        """Jiwer's alignment of one answer with one right text."""
        raise NotImplementedError


def _length(found) -> int:
    return found.hits + found.substitutions + found.deletions


class Cer(_ErrorRate):
    """Edits of characters."""

    name = headline = "cer"

    @staticmethod
    def _count(expected: str, answer: str):
        import jiwer

        return jiwer.process_characters(expected, answer)


class Wer(_ErrorRate):
    """Edits of words, which are what white space separates: take `cer` for languages without it."""

    name = headline = "wer"

    @staticmethod
    def _count(expected: str, answer: str):
        import jiwer

        return jiwer.process_words(expected, answer)
