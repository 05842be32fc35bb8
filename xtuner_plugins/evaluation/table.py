"""Results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("data set", "metric", "score", "95 % interval", "questions", "left out")


def table(data_sets: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per data set, and one per category where it has several.

    Args:
        data_sets: As in results.json.
    """
    rows = [COLUMNS]
    for name, found in data_sets.items():
        rows.append(
            (
                name,
                f"{found['metric']}: {found['headline']}",
                number(found["score"]),
                between(found["interval"]),
                f"{found['num_answered']:,}",
                f"{found['num_left_out']:,}" if found["num_left_out"] else "",
            )
        )
        parts = {key: value for key, value in found["figures"].items() if key.startswith(f"{found['headline']}/")}
        if len(parts) > 1:
            rows += [(f"  {key.partition('/')[2]}", "", number(value), "", "", "") for key, value in parts.items()]
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns: the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{'<' if column < 2 else '>'}{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def number(value: float | None) -> str:
    """A score, or a dash where nothing was answered."""
    return "-" if value is None else f"{value:.1f}"


def between(interval: tuple[float, float] | None) -> str:
    """An interval, or a dash where there is none."""
    return "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
