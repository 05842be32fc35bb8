"""The page of one result, or of two compared: scores, and answers with their images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..datasets.images.media import load_image
from ..errors import MediaError
from ..html_page import render
from ..inference.drawing import with_boxes
from .compare import Comparison, comparison_table, differences
from .results import Row, table

MOST_CARDS = 300  # of all data sets; about 15 kB per image
SIDE = 360  # pixels of the longer side of an image


def write_report(path: str | Path, results: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes the page of one result, with the answers that aren't all right, the worst first.

    Args:
        path: The page.
        results: As in results.json.
        rows: All answered questions.
    """
    names, shown, images = list(results["datasets"]), [], Images()
    wrong = [row for row in rows if row.score is None or row.score < 1]
    for name in names:
        worst = sorted((row for row in wrong if row.dataset == name), key=lambda row: row.score or 0)
        shown += [(row,) for row in worst[: max(1, MOST_CARDS // len(names))]]
    _write(
        path,
        title=("Evaluation", "评测"),
        models=[("", results)],
        notes=[f"{name}: {message}" for name in names for message in results["datasets"][name]["left_out"]],
        summary=table(results["datasets"]),
        verdicts=[],
        cards=[_card(pair, images) for pair in shown],
        num_all=len(wrong),
        images=images.data,
    )


def write_comparison(path: str | Path, models: Sequence[Mapping[str, Any]], compared: Mapping[str, Comparison]) -> None:
    """Writes the page of a comparison, with the questions that one of both answers better.

    Args:
        path: The page.
        models: results.json of A and of B.
        compared: From `compare`.
    """
    shown, images, num_all = [], Images(), 0
    for each in compared.values():
        differing = [pair for pair in each.pairs if pair[0].score != pair[1].score]
        differing.sort(key=lambda pair: -abs(pair[0].score - pair[1].score))
        shown += differing[: max(1, MOST_CARDS // len(compared))]
        num_all += len(differing)
    _write(
        path,
        title=("Comparison", "对比"),
        models=list(zip("AB", models, strict=True)),
        notes=differences(*models),
        summary=comparison_table({name: each.as_json() for name, each in compared.items()}),
        verdicts=[(name, each.verdict, each.sentence()) for name, each in compared.items()],
        cards=[_card(pair, images) for pair in shown],
        num_all=num_all,
        images=images.data,
    )


def _write(path: str | Path, **values: Any) -> None:
    Path(path).write_text(render(Path(__file__).parent, "page.html.jinja", **values), encoding="utf-8")


def _card(pair: tuple[Row, ...], images: Images) -> dict[str, Any]:
    """What the page shows of a question: the answer of one model, or those of two."""
    row, scores = pair[0], [each.score for each in pair]
    kind = "one" if len(pair) == 1 else "a" if scores[0] > scores[1] else "b"
    return {
        "dataset": row.dataset,
        "id": row.item.question.id,
        "kind": ("0" if not scores[0] else "partly") if kind == "one" else kind,
        "question": row.item.question.text,
        "expected": " | ".join(dict.fromkeys(row.item.expected)),
        "answers": [
            (name, "" if each.score is None else f"{100 * each.score:.0f} %", each.answer, each.score == min(scores))
            for name, each in zip(("",) if len(pair) == 1 else "AB", pair, strict=True)
        ],
        "images": [images.add(row, index) for index in range(len(row.item.question.paths))],
    }


class Images:
    """The images of a page, each once.

    Attributes:
        data: JPEGs in base64; cards name them by their index.
    """

    def __init__(self):
        self.data: list[str] = []
        self._small = cache(self._small)

    def add(self, row: Row, index: int) -> dict[str, Any]:
        """An image of a row, with the boxes of the answer where it is the only one.

        Returns:
            Index of the image in `data`, `label`, `width` and `height`; no index where it can't be read any more.
        """
        question = row.item.question
        boxes = row.answer if len(question.paths) == 1 and "[" in row.answer else ""
        return self._small(question.paths[index], boxes, question.images[index])

    def _small(self, path: str, boxes: str, name: str) -> dict[str, Any]:
        try:
            image = load_image(path)
        except MediaError as error:  # it was there when the question was answered
            return {"label": str(error), "data": None, "width": 0, "height": 0}
        label = f"{name}, {image.width}x{image.height}"
        image = with_boxes(image, boxes) or image.copy()
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=82)
        self.data.append(base64.b64encode(buffer.getvalue()).decode())
        return {"label": label, "data": len(self.data) - 1, "width": image.width, "height": image.height}
