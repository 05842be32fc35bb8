"""OCRBench (Liu et al., 2023, arXiv:2305.07895): an answer is right if it contains a right text."""

from __future__ import annotations

import numpy as np

from ..items import Item
from .averages import Average, categories_of

FORMULAS = "Handwritten Mathematical Expression Recognition"
QUESTIONS = 1000  # in OCRBench; the score is out of as many


class OcrBench(Average):
    """The score out of 1000: of the whole benchmark the number of right answers, of a part its share times 1000.

    Case doesn't count, except in formulas, where white space doesn't.
    """

    name = "ocrbench"
    headline = "score"

    def score(self, answer: str, item: Item) -> float:
        plain = _formula if FORMULAS in categories_of(item) else _text
        return any(plain(text) in plain(answer) for text in item.expected if text.strip())

    def headline_of(self, sums: np.ndarray) -> np.ndarray:
        return super().headline_of(sums) * QUESTIONS / 100


def _text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
