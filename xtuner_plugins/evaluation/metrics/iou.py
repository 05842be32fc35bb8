"""Boxes that overlap enough: the metric of RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ...datasets.records.boxes import BOX, FRAME_SIZE
from ..items import Item
from .averages import Average, refuse

THRESHOLD = 0.5
_ROUNDING = 1e-9  # fractions of the image round; whole pixels may overlap by exactly a half
FRAMES = ("0-1000", "fraction", "pixel")
_NUMBER = r"(-?(?:\d+(?:\.\d*)?|\.\d+))"
_CORNERS = re.compile(
    rf"[\[(]\s*{_NUMBER}[\s,]+{_NUMBER}[\s,()\[\]]+{_NUMBER}[\s,]+{_NUMBER}\s*[\])]"  # [a, b, c, d], (a,b),(c,d)
)


def find_box(text: str, size: tuple[int, int] | None, frame: str | None = None) -> tuple[float, ...] | None:
    """The first box of a text, as (x1, y1, x2, y2) in fractions of the image; None where there is none.

    Args:
        text: `<box>[[x1, y1, x2, y2]]</box>`, `[x1, y1, x2, y2]` or `(x1,y1),(x2,y2)`.
        size: (width, height) of the image; pixels can't be read without it.
        frame: One of `FRAMES`. None tells it by the numbers: inside `<box>` 0 to 1000; with a sum below 4 fractions,
        as in
            InternVL's script; with one above 1000 pixels; otherwise 0 to 1000.
    """
    tagged = BOX.search(text)
    found = _CORNERS.search(tagged[1] if tagged else text)
    if not found:
        return None
    box = tuple(map(float, found.groups()))
    if not all(map(math.isfinite, box)):
        return None
    frame = frame or (FRAMES[0] if tagged else _guess_frame(box))
    if frame == "pixel":
        return None if size is None else tuple(value / side for value, side in zip(box, size * 2, strict=True))
    return box if frame == "fraction" else tuple(value / FRAME_SIZE for value in box)


def _guess_frame(box: Sequence[float]) -> str:
    if sum(box) < 4:
        return "fraction"
    return "pixel" if max(box) > FRAME_SIZE else "0-1000"


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 where one of them has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) if box[2] > box[0] and box[3] > box[1] else 0 for box in (a, b)]
    if width <= 0 or height <= 0 or not all(areas):
        return 0.0
    return width * height / (sum(areas) - width * height)


class Iou(Average):
    """The share of answers whose first box overlaps the right one by at least 0.5 (intersection over union).

    Facts of an item: `width` and `height` of the image; `frame`, in which the right box is written, and
    `answer_frame`, in which the model writes (see `find_box`). Figures: `accuracy`, `mean_iou`, and `unclear`, the
    share of answers without a box.
    """

    name = "iou"

    def check(self, item: Item) -> None:
        super().check(item)
        for key in ("frame", "answer_frame"):
            if item.facts.get(key) not in (None, *FRAMES):
                raise refuse(item, key, f"{key} {item.facts[key]!r}", f"it is one of {', '.join(FRAMES)}")
        sides = [item.facts.get(side) for side in ("width", "height")]
        if sides != [None, None] and not all(type(side) in (int, float) and side > 0 for side in sides):
            problem = f"the size of the image is {sides[0]!r} x {sides[1]!r}"
            raise refuse(item, "size", problem, "give 'width' and 'height' in pixels, both or none")
        if item.facts.get("frame") == "pixel" and _size(item) is None:
            raise refuse(item, "size", "a box in pixels, and no size of the image", "give 'width' and 'height'")
        box = _right_box(item)
        if box is None:
            raise refuse(
                item, "box", f"the answer {item.expected[0][:60]!r} is no box", "write [x1, y1, x2, y2], 0 to 1000"
            )
        if not overlap(box, box):
            raise refuse(
                item,
                "box",
                f"the box {item.expected[0][:60]} has no area",
                "write [x1, y1, x2, y2] with x1 < x2, y1 < y2",
            )

    def score(self, answer: str, item: Item) -> float:
        return _iou(answer, item) >= THRESHOLD - _ROUNDING

    def figures(self, answers: Sequence[str], items: Sequence[Item]) -> Mapping[str, float]:
        pairs = list(zip(answers, items, strict=True))
        unclear = [_given_box(answer, item) is None for answer, item in pairs]
        return dict(super().figures(answers, items)) | {
            "mean_iou": 100 * float(np.mean([_iou(answer, item) for answer, item in pairs])),
            "unclear": 100 * float(np.mean(unclear)),
        }


def _size(item: Item) -> tuple[int, int] | None:
    width, height = item.facts.get("width"), item.facts.get("height")
    return (width, height) if width and height else None


def _right_box(item: Item) -> tuple[float, ...] | None:
    return find_box(item.expected[0], _size(item), item.facts.get("frame"))


def _given_box(answer: str, item: Item) -> tuple[float, ...] | None:
    return find_box(answer, _size(item), item.facts.get("answer_frame"))


def _iou(answer: str, item: Item) -> float:
    given = _given_box(answer, item)
    return 0.0 if given is None else overlap(given, _right_box(item))
