"""ANLS: average normalized Levenshtein similarity (Biten et al., 2019, arXiv:1905.13648), the metric of DocVQA."""

from __future__ import annotations

from ..items import Item
from .averages import Average

THRESHOLD = 0.5


class Anls(Average):
    """The similarity to the nearest right answer; 0 below the threshold.

    Case and runs of white space don't count. A similarity of exactly 0.5 counts, as in the challenge's own script; the
    paper's formula would make it 0.
    """

    name = "anls"
    headline = "anls"

    def score(self, answer: str, item: Item) -> float:
        similarity = max(_similarity(answer, text) for text in item.expected)
        return similarity if similarity >= THRESHOLD else 0.0


def _similarity(given: str, expected: str) -> float:
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(" ".join(given.lower().split()), " ".join(expected.lower().split()))
