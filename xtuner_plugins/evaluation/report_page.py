"""The page of an evaluation: scores by data set, by tiles and by length of the answer, and the wrong answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..datasets.errors import MediaError
from ..datasets.images.media import load_image
from ..html_page import render
from ..inference.drawing import with_boxes
from .results import Row
from .table import between, number

Ranges = Sequence[tuple[int, "int | None"]]  # first and last value; None for no last one

MOST_CARDS = 300  # of all data sets; about 15 kB per image
TILES = ((0, 0), (1, 1), (2, 4), (5, 7), (8, 10), (11, 13), (14, None))
CHARACTERS = ((0, 0), (1, 3), (4, 10), (11, 30), (31, 100), (101, None))
GRID_COLOR = "#ff2d92"
SIDE = 360  # pixels of the longer side of an image


def write_report(path: str | Path, results: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes the page, images of the wrong answers included.

    Args:
        path: The page.
        results: As in results.json.
        rows: All answered questions.
    """
    images = Images()
    wrong = worst(rows, list(results["datasets"]))
    text = render(
        Path(__file__).parent,
        "report.html.jinja",
        results=results,
        by_tiles=breakdown(rows, TILES, lambda row: row.num_tiles),
        by_length=breakdown(rows, CHARACTERS, lambda row: len(row.answer.strip())),
        cards=[card(row, images) for row in wrong],
        num_wrong=sum(row.score < 1 for row in rows),
        images=images.data,
        number=number,
        between=between,
    )
    Path(path).write_text(text, encoding="utf-8")


def breakdown(
    rows: Sequence[Row], ranges: Ranges, of: Callable[[Row], int | None]
) -> list[tuple[str, dict[str, tuple[float, int]]]]:
    """(range, data set to (mean score in percent, questions)) for each range that occurs."""
    found = []
    for low, high in ranges:
        inside = [
            row for row in rows if (value := of(row)) is not None and low <= value and (high is None or value <= high)
        ]
        by_name: dict[str, list[float]] = {}
        for row in inside:
            by_name.setdefault(row.dataset, []).append(row.score)
        if inside:
            means = {name: (100 * sum(scores) / len(scores), len(scores)) for name, scores in by_name.items()}
            found.append((range_name(low, high), means))
    return found


def range_name(low: int, high: int | None) -> str:
    """Such as "1", "2-4" or "14+"."""
    return f"{low}+" if high is None else f"{low}" if low == high else f"{low}-{high}"


def tiles_name(row: Row) -> str:
    """The range of tiles that a row is in; "?" where its images are gone."""
    count = row.num_tiles
    if count is None:
        return "?"
    return next(range_name(low, high) for low, high in TILES if high is None or count <= high)


def worst(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Answers that aren't all right, the worst first, equally many of each data set where there are too many."""
    found = []
    for name in names:
        wrong = sorted((row for row in rows if row.dataset == name and row.score < 1), key=lambda row: row.score)
        found += wrong[: max(1, MOST_CARDS // len(names))]
    return found


class Images:
    """The images of a page, each once.

    Attributes:
        data: JPEGs in base64; cards name them by their index.
    """

    def __init__(self):
        self.data: list[str] = []
        self._known: dict[tuple, dict] = {}

    def add(self, row: Row, index: int, answer: str) -> dict:
        """An image of a row, with its tiles, and with the boxes of the answer where it is the only one."""
        question, only_one = row.item.question, len(row.item.question.paths) == 1
        cut = None if row.tiles is None else row.tiles[index]
        boxes = answer if only_one and "[" in answer else ""
        key = (question.paths[index], cut, boxes)
        if key not in self._known:
            found = small_image(question.paths[index], question.images[index], lambda image: _marked(image, cut, boxes))
            number = None
            if found["data"] is not None:
                number = len(self.data)
                self.data.append(found["data"])
            self._known[key] = {**found, "data": number, "cut": cut}
        return self._known[key]


def card(row: Row, images: Images) -> dict[str, Any]:
    """What the page shows of an answer."""
    question = row.item.question
    return {
        "dataset": row.dataset,
        "id": question.id,
        "question": question.text,
        "expected": " | ".join(dict.fromkeys(row.item.expected)),
        "answer": row.answer,
        "score": f"{100 * row.score:.0f}",
        "tiles": tiles_name(row),
        "images": [images.add(row, index, row.answer) for index in range(len(question.paths))],
    }


def _marked(image: Image.Image, cut: tuple[int, int, int] | None, boxes: str) -> Image.Image:
    """An image of the page's size with the lines between its tiles, and boxes."""
    image = (with_boxes(image, boxes) if boxes else None) or image.copy()
    image.thumbnail((SIDE, SIDE))
    if cut is None:
        return image
    columns, rows, _ = cut
    draw = ImageDraw.Draw(image)
    for column in range(1, columns):
        draw.line([(x := round(image.width * column / columns), 0), (x, image.height)], fill=GRID_COLOR)
    for row in range(1, rows):
        draw.line([(0, y := round(image.height * row / rows)), (image.width, y)], fill=GRID_COLOR)
    return image


def small_image(path: str, name: str, draw: Callable[[Image.Image], Image.Image] | None = None) -> dict:
    """An image as a page shows it: `data` (JPEG in base64; None where it can't be read), `label`, `width`, `height`.

    Args:
        path: Its file.
        name: In the label.
        draw: What is drawn on it, before it is made smaller.
    """
    try:
        image = load_image(path)
    except MediaError as error:  # it was there when the question was answered
        return {"label": str(error), "data": None, "width": 0, "height": 0}
    label = f"{name}, {image.width}x{image.height}"
    image = draw(image) if draw else image
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"label": label, "data": data, "width": image.width, "height": image.height}
