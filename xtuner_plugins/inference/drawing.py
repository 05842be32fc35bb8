"""Boxes that an answer contains, drawn on the image."""

from __future__ import annotations

import math
import re

from PIL import Image, ImageDraw

from ..datasets.records.boxes import COLOR, FRAME_SIZE, find_boxes

# The tags are special tokens of most models, which decoding drops: of `<box>[[...]]</box>` only the numbers are left.
_ROW = r"\[[\d\s.,-]*\]"
BARE_BOXES = re.compile(rf"\[\s*{_ROW}(?:\s*,\s*{_ROW})*\s*\]")


def answer_boxes(answer: str) -> list[tuple[float, ...]]:
    """The boxes ``(x1, y1, x2, y2)`` of an answer in the frame of 0 to 1000, with tags or without."""
    return find_boxes(answer) or find_boxes("".join(f"<box>{bare}</box>" for bare in BARE_BOXES.findall(answer)))


def with_boxes(image: Image.Image, answer: str) -> Image.Image | None:
    """A copy of the image with outlines of the boxes of an answer; None where the answer contains none.

    What a model got wrong is drawn as far as it can be: corners outside are moved to the edge, inverted ones swapped.
    """
    boxes = answer_boxes(answer)
    if not boxes:
        return None
    drawn = image.convert("RGB").copy()
    draw, width = ImageDraw.Draw(drawn), max(2, round(max(image.size) / 300))
    for box in boxes:
        if all(map(math.isfinite, box)):
            x1, y1, x2, y2 = (min(max(value / FRAME_SIZE, 0), 1) for value in box)
            left, right = (x * (image.width - 1) for x in sorted((x1, x2)))
            top, bottom = (y * (image.height - 1) for y in sorted((y1, y2)))
            draw.rectangle((left, top, right, bottom), outline=COLOR, width=width)
    return drawn
