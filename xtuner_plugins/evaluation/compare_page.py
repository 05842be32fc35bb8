"""The page and the table of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..html_page import render
from .compare import Comparison
from .report_page import CHARACTERS, MOST_CARDS, TILES, Images, Ranges, breakdown, card
from .results import Row
from .table import aligned, between, number

COLUMNS = ("data set", "metric", "A", "B", "B - A", "95 % interval", "p", "A better", "B better", "questions")


def comparison_table(data_sets: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per data set.

    Args:
        data_sets: From `compare.as_json`.
    """
    rows = [COLUMNS]
    for name, found in data_sets.items():
        scores = (number(found["a"]), number(found["b"]), f"{found['gain']:+.1f}", between(found["interval"]))
        counts = (f"{found[key]:,}" for key in ("better_a", "better_b", "num_common"))
        rows.append((name, f"{found['metric']}: {found['headline']}", *scores, p_text(found["p_value"]), *counts))
    return aligned(rows)


def p_text(value: float | None) -> str:
    """A p-value with three digits."""
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def write_comparison(
    path: str | Path, models: Sequence[Mapping], comparisons: Sequence[Comparison], found: Mapping
) -> None:
    """Writes the page, with the questions that one of both answers better.

    Args:
        path: The page.
        models: results.json of A and of B.
        comparisons: From `compare`.
        found: The same from `as_json`.
    """
    images, cards = Images(), []
    pairs = [pair for each in comparisons for pair in each.pairs]
    for each in comparisons:
        differing = sorted((pair for pair in each.pairs if pair[0].score != pair[1].score), key=_least_even)
        cards += [_card(*pair, images) for pair in differing[: max(1, MOST_CARDS // len(comparisons))]]
    text = render(
        Path(__file__).parent,
        "comparison.html.jinja",
        models=models,
        data_sets=found,
        by_tiles=_both(pairs, TILES, lambda row: row.num_tiles),
        by_length=_both(pairs, CHARACTERS, lambda row: len(" | ".join(row.item.expected[:1]))),
        cards=cards,
        num_differing=sum(a.score != b.score for a, b in pairs),
        images=images.data,
        number=number,
        between=between,
        p_text=p_text,
    )
    Path(path).write_text(text, encoding="utf-8")


def _least_even(pair: tuple[Row, Row]) -> float:
    return -abs(pair[0].score - pair[1].score)


def _both(
    pairs: Sequence[tuple[Row, Row]], ranges: Ranges, of: Callable[[Row], int | None]
) -> list[tuple[str, dict[str, tuple[float, float, int]]]]:
    """(range, data set to (A's mean score, B's, questions)); the higher value of both puts a question into a range."""
    values = {_key(a): max((v for v in (of(a), of(b)) if v is not None), default=None) for a, b in pairs}
    one, other = (
        dict(breakdown([pair[side] for pair in pairs], ranges, lambda row: values[_key(row)])) for side in (0, 1)
    )
    return [
        (name, {data_set: (mean, other[name][data_set][0], count) for data_set, (mean, count) in means.items()})
        for name, means in one.items()
    ]


def _key(row: Row) -> tuple[str, str]:
    return row.dataset, row.item.question.id


def _card(one: Row, other: Row, images: Images) -> dict[str, Any]:
    shown = card(one, images)
    return {
        **shown,
        "other": other.answer,
        "other_score": f"{100 * other.score:.0f}",
        "better": "a" if one.score > other.score else "b",
    }
