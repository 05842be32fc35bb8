"""The page of one result, or of two compared: scores, tables by tiles and by length, and answers with their images."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets.images.media import load_image
from ..errors import MediaError
from ..html_page import render
from ..inference.drawing import with_boxes
from .compare import Comparison, comparison_table, differences
from .results import Row, table

MOST_CARDS = 300  # of all data sets; about 15 kB per image
TILES = ((0, 0), (1, 1), (2, 4), (5, 7), (8, 10), (11, 13), (14, None))
CHARACTERS = ((0, 0), (1, 3), (4, 10), (11, 30), (31, 100), (101, None))
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
        tables=_tables([(row,) for row in rows if row.score is not None]),
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
    pairs, shown, images = [pair for each in compared.values() for pair in each.pairs], [], Images()
    for each in compared.values():
        differing = sorted(
            (p for p in each.pairs if p[0].score != p[1].score), key=lambda p: -abs(p[0].score - p[1].score)
        )
        shown += differing[: max(1, MOST_CARDS // len(compared))]
    _write(
        path,
        title=("Comparison", "对比"),
        models=list(zip("AB", models, strict=True)),
        notes=differences(*models),
        summary=comparison_table({name: each.as_json() for name, each in compared.items()}),
        verdicts=[(name, each.verdict, each.sentence()) for name, each in compared.items()],
        tables=_tables(pairs),
        cards=[_card(pair, images) for pair in shown],
        num_all=sum(a.score != b.score for a, b in pairs),
        images=images.data,
    )


def _write(path: str | Path, **values: Any) -> None:
    Path(path).write_text(render(Path(__file__).parent, "page.html.jinja", **values), encoding="utf-8")


def _tables(pairs: Sequence[tuple[Row, ...]]) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """(title, title in Chinese, rows) of mean scores by tiles and by length of the expected answer."""
    by_tiles = breakdown(pairs, TILES, lambda row: None if row.tiles is None else sum(row.tiles))
    by_length = breakdown(pairs, CHARACTERS, lambda row: len(row.item.expected[0]))
    return [
        ("Mean score by tiles of the question", "平均得分（按问题的图块数）", by_tiles),
        ("Mean score by characters of the expected answer", "平均得分（按标准答案的字符数）", by_length),
    ]


def breakdown(
    pairs: Sequence[tuple[Row, ...]],
    ranges: Sequence[tuple[int, int | None]],
    of: Callable[[Row], int | None],
) -> list[tuple[str, ...]]:
    """A head and a row per range that occurs: data set, range, mean score of each model in percent, questions.

    The higher value of both models puts a question into a range.
    """
    found: dict[tuple[str, int], list[tuple[Row, ...]]] = {}
    for pair in pairs:
        value = max((value for row in pair if (value := of(row)) is not None), default=None)
        if value is not None:
            place = next(n for n, (_, high) in enumerate(ranges) if high is None or value <= high)
            found.setdefault((pair[0].dataset, place), []).append(pair)
    rows = []
    for (name, place), inside in sorted(found.items()):
        means = (f"{100 * sum(row.score for row in side) / len(side):.1f}" for side in zip(*inside, strict=True))
        rows.append((name, range_name(*ranges[place]), *means, f"{len(inside):,}"))
    head = ("score",) if not pairs or len(pairs[0]) == 1 else ("A", "B")
    return [("data set", "range", *head, "questions"), *rows] if rows else []


def range_name(low: int, high: int | None) -> str:
    """Such as "1", "2-4" or "14+"."""
    return f"{low}+" if high is None else f"{low}" if low == high else f"{low}-{high}"


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
        self._known: dict[tuple, dict[str, Any]] = {}

    def add(self, row: Row, index: int) -> dict[str, Any]:
        """An image of a row, with the boxes of the answer where it is the only one.

        Returns:
            Index of the image in `data`, `label`, `width`, `height` and its number of `tiles`; no index where it can't
            be read any more.
        """
        question, tiles = row.item.question, row.tiles and row.tiles[index]
        boxes = row.answer if len(question.paths) == 1 and "[" in row.answer else ""
        key = (question.paths[index], boxes)
        if key not in self._known:
            self._known[key] = {**self._small(*key, question.images[index]), "tiles": tiles}
        return self._known[key]

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
