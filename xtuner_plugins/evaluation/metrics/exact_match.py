"""Exact match: the answer is one of the right ones, letter for letter."""

from __future__ import annotations

from ..items import Item
from .averages import Average


class ExactMatch(Average):
    """Case and the space around the text don't count; everything else does, as in the scripts for GQA and OCR-VQA."""

    name = "exact_match"

    def score(self, answer: str, item: Item) -> float:
        return answer.strip().lower() in {text.strip().lower() for text in item.expected}
