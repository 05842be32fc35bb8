"""The scalars that the runs of a work directory have logged, as series over optimizer steps, and the losses drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

CONTRACT_FILE = "run_contract.json"  # in the work directory, and in the folder of each start
SCALARS = "vis_data/scalars.json"  # in the folder of each start
NO_SERIES = {"step", "iter", "epoch", "eta", "memory", "base_lr"}

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


def read_losses(work_dir: str | Path) -> tuple[list[int], list[float]]:
    """Steps and losses of the runs in a work directory."""
    series = read_series(Path(work_dir))
    if "loss" not in series:
        raise FileNotFoundError(f"{work_dir} has no */{SCALARS} with losses: nothing was trained there")
    return tuple(map(list, zip(*series["loss"], strict=True)))


def draw_losses(runs: Mapping[str, str | Path], out: str | Path) -> None:
    """Loss over steps, one panel per run.

    Args:
        runs: Title to work dir.
        out: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(runs), 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, work_dir) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        steps, losses = read_losses(work_dir)
        axes.plot(steps, losses, color="#2454cc", linewidth=1.4)
        axes.set(title=title, xlabel="step", ylabel="loss of the supervised tokens")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)
