"""The page of one result, or of two compared: scores, and answers with their images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
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
    names, shown = list(results["datasets"]), []
    wrong = sorted((row for row in rows if not row.score or row.score < 1), key=lambda row: row.score or 0)
    for name in names:
        shown += [(row,) for row in wrong if row.dataset == name][: max(1, MOST_CARDS // len(names))]
    notes = [f"{name}: {message}" for name in names for message in results["datasets"][name]["left_out"]]
    about = {"title": ("Evaluation", "评测"), "models": [("", results)], "notes": notes, "verdicts": []}
    _write(path, shown, num_all=len(wrong), summary=table(results["datasets"]), **about)


def write_comparison(path: str | Path, models: Sequence[Mapping[str, Any]], compared: Mapping[str, Comparison]) -> None:
    """Writes the page of a comparison, with the questions that one of both answers better.

    Args:
        path: The page.
        models: results.json of A and of B.
        compared: From `compare`.
    """
    shown, num_all = [], 0
    for each in compared.values():
        differing = [pair for pair in each.pairs if pair[0].score != pair[1].score]
        differing.sort(key=lambda pair: -abs(pair[0].score - pair[1].score))
        shown += differing[: max(1, MOST_CARDS // len(compared))]
        num_all += len(differing)
    about = {"title": ("Comparison", "对比"), "models": list(zip("AB", models, strict=True))}
    about["verdicts"] = [(name, each.verdict, each.sentence()) for name, each in compared.items()]
    about["summary"] = comparison_table({name: each.as_json() for name, each in compared.items()})
    _write(path, shown, num_all=num_all, notes=differences(*models), **about)


def _write(path: str | Path, shown: Sequence[tuple[Row, ...]], **values: Any) -> None:
    images = Images()
    cards = [_card(pair, images) for pair in shown]
    page = render(Path(__file__).parent, "page.html.jinja", cards=cards, images=images.data, **values)
    Path(path).write_text(page, encoding="utf-8")


def _card(pair: tuple[Row, ...], images: Images) -> dict[str, Any]:
    """What the page shows of a question: the answer of one model, or those of two."""
    row, scores, question = pair[0], [each.score for each in pair], pair[0].item.question
    kind, names = ("partly" if scores[0] else "0", ("",)) if len(pair) == 1 else ("ab"[scores[0] < scores[1]], "AB")
    # The boxes of an answer are drawn where its image is the only one.
    boxes = row.answer if len(question.paths) == 1 and "[" in row.answer else ""
    return {
        "dataset": row.dataset,
        "id": question.id,
        "kind": kind,
        "question": question.text,
        "expected": " | ".join(dict.fromkeys(row.item.expected)),
        "answers": [
            (name, "" if each.score is None else f"{100 * each.score:.0f} %", each.answer, each.score == min(scores))
            for name, each in zip(names, pair, strict=True)
        ],
        "images": [images[path, boxes, name] for path, name in zip(question.paths, question.images, strict=True)],
    }


class Images(dict[tuple[str, str, str], dict[str, Any]]):
    """What a page shows of an image, by its path, a text with boxes and its name: each is read once.

    That is the index of the image in `data`, `label`, `width` and `height`; no index where it can't be read any more.

    Attributes:
        data: JPEGs in base64.
    """

    def __init__(self):
        super().__init__()
        self.data: list[str] = []

    def __missing__(self, key: tuple[str, str, str]) -> dict[str, Any]:
        path, boxes, name = key
        try:
            image = load_image(path)
        except MediaError as error:  # it was there when the question was answered
            self[key] = {"label": str(error), "data": None, "width": 0, "height": 0}
            return self[key]
        label, buffer = f"{name}, {image.width}x{image.height}", io.BytesIO()
        image = with_boxes(image, boxes) or image.copy()
        image.thumbnail((SIDE, SIDE))
        image.save(buffer, "JPEG", quality=82)
        self[key] = {"label": label, "data": len(self.data), "width": image.width, "height": image.height}
        self.data.append(base64.b64encode(buffer.getvalue()).decode())
        return self[key]
