"""A folder of results: what was measured, of which model, on which data; written by one run, read by comparisons.

::

    DIR/answers.jsonl    every answer, appended as it came (`inference/answer_file.py`)
    DIR/items.jsonl      one line per answered question: question, expected, answer, score, tiles
    DIR/results.json     settings, hashes, versions, figures by data set
    DIR/report.html      the same to look at
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..datasets.cache import text_hash, write_whole
from ..datasets.errors import MediaError
from ..inference.batch_answers import Lengths
from ..inference.questions import Question, Unusable
from .confidence import LEVEL
from .items import Item
from .measured import Measured

ANSWERS, ITEMS, RESULTS, REPORT = "answers.jsonl", "items.jsonl", "results.json", "report.html"
PACKAGES = ("torch", "transformers", "tokenizers", "pillow", "numpy")


@dataclass(frozen=True)
class Row:
    """One answered question.

    Attributes:
        dataset: Name of its data set.
        item: The question with the right answers.
        answer: The model's.
        score: By the data set's metric.
        tiles: Columns, rows and thumbnails of each image; None where an image is gone.
    """

    dataset: str
    item: Item
    answer: str
    score: float
    tiles: tuple[tuple[int, int, int], ...] | None

    @property
    def num_tiles(self) -> int | None:
        """Of all its images, thumbnails included."""
        return (
            None if self.tiles is None else sum(columns * rows + thumbnail for columns, rows, thumbnail in self.tiles)
        )


def items_hash(items: Sequence[Item]) -> str:
    """Of what is asked and expected, and of the names of the images."""
    facts = [(i.question.id, i.question.text, i.question.images, i.expected, dict(i.facts)) for i in items]
    return text_hash(json.dumps(facts, ensure_ascii=False, sort_keys=True))


def rows_of(measured: Measured, lengths: Lengths) -> list[Row]:
    """The rows of a data set; the headers of its images are read."""
    triples = zip(measured.items, measured.answers, measured.scores, strict=True)
    return [Row(measured.name, item, answer, score, _tiles(item.question, lengths)) for item, answer, score in triples]


def _tiles(question: Question, lengths: Lengths) -> tuple[tuple[int, int, int], ...] | None:
    try:
        return tuple(map(tuple, lengths.grids(question)))
    except MediaError:  # it was there when the question was answered
        return None


def versions() -> dict[str, str]:
    """Python's and those of the packages that answers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def summary(measured: Measured, left_out: Sequence[Unusable], data: Mapping[str, str]) -> dict[str, Any]:
    """What results.json says of one data set.

    Args:
        measured: Its answers.
        left_out: What could not be asked or measured.
        data: Path and hash.
    """
    metric = measured.metric
    return {
        **data,
        "metric": metric.name,
        "headline": metric.headline,
        "higher_is_better": metric.higher_is_better,
        "score": measured.headline,
        "interval": measured.interval,
        "interval_level": LEVEL,
        "num_answered": len(measured.items),
        "num_left_out": len(left_out),
        "figures": measured.figures,
        "left_out": [each.message for each in left_out],
    }


def write_results(folder: Path, results: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes items.jsonl, then results.json; each is replaced whole."""
    lines = "".join(json.dumps(_line(row), ensure_ascii=False) + "\n" for row in rows)
    write_whole(folder / ITEMS, lambda path: path.write_text(lines, encoding="utf-8"))
    text = json.dumps({**results, "items": ITEMS}, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / RESULTS, lambda path: path.write_text(text, encoding="utf-8"))


def read_results(folder: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """What `write_results` wrote.

    Raises:
        ValueError: It isn't such a folder, or one of the files was damaged; says which.
    """
    path = Path(folder) / RESULTS
    if not path.is_file():
        raise ValueError(f"{folder} holds no {RESULTS}; give the --out folder of a finished tools/evaluate.py")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        path = Path(folder) / ITEMS
        rows = [_row(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        _ = results["model"], [each["hash"] for each in results["datasets"].values()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} can't be read ({type(error).__name__}: {error}); run tools/evaluate.py again"
        ) from None
    return results, rows


def _line(row: Row) -> dict[str, Any]:
    question = row.item.question
    return {
        "dataset": row.dataset,
        "id": question.id,
        "images": question.images,
        "paths": question.paths,
        "question": question.text,
        "expected": row.item.expected,
        "facts": dict(row.item.facts),
        "answer": row.answer,
        "score": row.score,
        "tiles": row.tiles,
    }


def _row(line: Mapping[str, Any]) -> Row:
    question = Question(line["id"], line["question"], tuple(line["images"]), tuple(line["paths"]))
    tiles = line["tiles"]
    return Row(
        line["dataset"],
        Item(question, tuple(line["expected"]), line["facts"]),
        line["answer"],
        float(line["score"]),
        None if tiles is None else tuple(map(tuple, tiles)),
    )
