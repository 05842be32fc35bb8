"""MME: yes and no in pairs (Fu et al., 2023, arXiv:2306.13394)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..items import Item
from .averages import Average, by_group, refuse, share
from .yes_no import check_yes_no

PERCEPTION = tuple("existence count position color posters celebrity scene landmark artwork OCR".split())
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES = PERCEPTION + COGNITION
_CHINESE = {"不是": "no", "是": "yes", "否": "no"}  # the longer first
_HAN = re.compile("[\u4e00-\u9fa5]")


def said(answer: str) -> str:
    """What an answer says by MME's script: the first four characters contain "yes" or "no"; '' otherwise.

    True and false, and the Chinese words, count as InternVL's script counts them.
    """
    text = answer.replace("\n", "")
    for word, meaning in _CHINESE.items():
        text = text.replace(word, meaning)
    begin = _HAN.sub("", text.lower().replace("true", "yes").replace("false", "no"))[:4]
    return "yes" if "yes" in begin else "no" if "no" in begin else ""


class Mme(Average):
    """The score of a category is accuracy plus accuracy+ in percent, at most 200; the total adds up all categories.

    Accuracy+ is the share of images with both questions right. The two questions of an image have one `group`; an
    image that lacks one of them counts in accuracy only, and `incomplete_images` counts such images.
    """

    name = "mme"
    headline = "total"

    def check(self, item: Item) -> None:
        check_yes_no(item)
        if item.facts.get("category") not in CATEGORIES:
            known = ", ".join(CATEGORIES)
            raise refuse(item, "category", f"category {item.facts.get('category')!r}", f"MME has {known}")
        if item.facts.get("group") is None:
            raise refuse(item, "group", "no group", "give the two questions of an image the same 'group'")

    def score(self, answer: str, item: Item) -> float:
        return said(answer) == item.expected[0].strip().lower()

    def tally(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """For each of the 14 categories: right answers, questions, images with both right, images."""
        rows = np.zeros((len(items), len(CATEGORIES), 4))
        scores = self.scores(answers, items)
        columns = [CATEGORIES.index(item.facts["category"]) for item in items]
        for place, (column, score) in enumerate(zip(columns, scores, strict=True)):
            rows[place, column, :2] = score, 1
        for group in by_group(items):
            if len(group) == 2:
                rows[group[0], columns[group[0]], 2:] = min(scores[place] for place in group), 1
        return rows.reshape(len(items), -1)

    def headline_of(self, sums: np.ndarray) -> np.ndarray:
        right, asked, both, images = _parts(sums)
        return (share(right, asked) + share(both, images)).sum(axis=-1)

    def figures(self, answers: Sequence[str], items: Sequence[Item]) -> Mapping[str, float]:
        sums = self.tally(answers, items).sum(axis=0)
        right, asked, both, images = _parts(sums)
        single, pairs = share(right, asked), share(both, images)
        present = [(column, name) for column, name in enumerate(CATEGORIES) if asked[column]]
        points = {name: float(single[column] + pairs[column]) for column, name in present}
        result = {
            "total": float(self.headline_of(sums)),
            "perception": sum(points.get(name, 0.0) for name in PERCEPTION),
            "cognition": sum(points.get(name, 0.0) for name in COGNITION),
            "incomplete_images": float(sum(len(group) != 2 for group in by_group(items))),
        }
        for column, name in present:
            result |= {
                f"score/{name}": points[name],
                f"accuracy/{name}": float(single[column]),
                f"accuracy_plus/{name}": float(pairs[column]),
            }
        return result


def _parts(sums: np.ndarray) -> np.ndarray:
    """[4, ..., categories] of `[..., categories * 4]`."""
    return np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 4), -1, 0)
