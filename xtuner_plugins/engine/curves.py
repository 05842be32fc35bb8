"""The scalars that the runs of a work directory have logged, as series over optimizer steps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

CONTRACT_FILE = "run_contract.json"  # in the work directory, and in the folder of each start
SCALARS = "vis_data/scalars.json"  # in the folder of each start
NO_SERIES = {"step", "iter", "epoch", "eta", "memory", "base_lr"}
FIRST = (
    *("loss", "val_loss", "loss_by_dataset", "val_loss_by_dataset", "loss_by_tiles", "loss_by_tokens"),
    *("lr", "grad_norm", "tokens_per_second", "samples_per_second", "padding", "peak_memory_gib"),
)

Series = list[tuple[int, float]]


def read_series(work_dir: Path) -> dict[str, Series]:
    """All scalars of a work directory, each step once.

    A start that went on from step N replaces what earlier starts had logged after N; one that began anew replaces all.

    Returns:
        (step, value) in the order of steps, by the scalar's name.
    """
    rows: dict[int, dict[str, float]] = {}
    for path in sorted(work_dir.glob(f"*/{SCALARS}")):
        begun_at = _step_before(path.parents[1])
        rows = {step: row for step, row in rows.items() if step <= begun_at}
        for row in read_lines(path):
            if isinstance(row.get("step"), int):
                rows.setdefault(row["step"], {}).update(row)
    series: dict[str, Series] = {}
    for step in sorted(rows):
        for name, value in rows[step].items():
            if name not in NO_SERIES and isinstance(value, (int, float)):
                series.setdefault(name, []).append((step, float(value)))
    return series


def read_lines(path: Path) -> Iterator[dict]:
    """The objects of a JSON-lines file; a line that a kill has cut off isn't one."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _step_before(folder: Path) -> int:
    """Steps that were done when a start began, as its contract says; 0 without one."""
    path = folder / CONTRACT_FILE
    return json.loads(path.read_text(encoding="utf-8"))["run"]["done"] if path.is_file() else 0


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of series by the chart that they share: ``lr/llm`` is in ``lr``."""
    names = sorted(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    for group, members in groups.items():
        if len(members) > 1 and group == "lr" and group in members:
            members.remove("lr")  # of the optimizer's first group
    order = {name: index for index, name in enumerate(FIRST)}
    return dict(sorted(groups.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
