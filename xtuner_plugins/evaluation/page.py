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
    wrong = sorted((row for row in rows if not row.score or row.score < 1), key=lambda row: row.score or 0)
    by_name = {name: [(row,) for row in wrong if row.dataset == name] for name in results["datasets"]}
    notes = [f"{name}: {message}" for name, each in results["datasets"].items() for message in each["left_out"]]
    about = {"title": ("Evaluation", "评测"), "models": [("", results)], "notes": notes, "verdicts": []}
    _write(path, by_name, summary=table(results["datasets"]), **about)


def write_comparison(path: str | Path, models: Sequence[Mapping[str, Any]], compared: Mapping[str, Comparison]) -> None:
    """Writes the page of a comparison, with the questions that one of both answers better.

    Args:
        path: The page.
        models: results.json of A and of B.
        compared: From `compare`.
    """
    by_name = {}
    for name, each in compared.items():
        differing = [pair for pair in each.pairs if pair[0].score != pair[1].score]
        by_name[name] = sorted(differing, key=lambda pair: -abs(pair[0].score - pair[1].score))
    about = {"title": ("Comparison", "对比"), "models": list(zip("AB", models, strict=True))}
    about["verdicts"] = [(name, each.verdict, each.sentence()) for name, each in compared.items()]
    about["summary"] = comparison_table({name: each.as_json() for name, each in compared.items()})
    _write(path, by_name, notes=differences(*models), **about)


def _write(path: str | Path, by_name: Mapping[str, Sequence[tuple[Row, ...]]], **values: Any) -> None:
    most = max(1, MOST_CARDS // len(by_name))
    cards = [_card(pair) for pairs in by_name.values() for pair in pairs[:most]]
    values |= {"cards": cards, "num_all": sum(map(len, by_name.values()))}
    Path(path).write_text(render(Path(__file__).parent, "page.html.jinja", **values), encoding="utf-8")


def _image(path: str, boxes: str, name: str) -> dict[str, str]:
    """The label of an image, and a small JPEG of it in base64 with the boxes of an answer."""
    try:
        image = load_image(path)
    except MediaError as error:  # it was there when the question was answered
        return {"label": str(error), "data": ""}
    label, buffer = f"{name}, {image.width}x{image.height}", io.BytesIO()
    image = with_boxes(image, boxes) or image.copy()
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, "JPEG", quality=82)
    return {"label": label, "data": base64.b64encode(buffer.getvalue()).decode()}


def _card(pair: tuple[Row, ...]) -> dict[str, Any]:
    """What the page shows of a question: the answer of one model, or those of two."""
    row, scores, question = pair[0], [each.score for each in pair], pair[0].question
    # The boxes of an answer are drawn where its image is the only one.
    boxes = row.answer if len(question.paths) == 1 and "[" in row.answer else ""
    answers = [
        (name, "" if each.score is None else f"{100 * each.score:.0f} %", each.answer, each.score == min(scores))
        for name, each in zip("AB" if len(pair) > 1 else [""], pair, strict=True)
    ]
    facts = {"dataset": row.dataset, "id": question.id, "question": question.text, "answers": answers}
    images = [_image(path, boxes, name) for path, name in zip(question.paths, question.images, strict=True)]
    return {**facts, "expected": " | ".join(dict.fromkeys(question.expected)), "images": images}
