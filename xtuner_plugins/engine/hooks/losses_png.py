"""The losses of a run as an image, drawn at its end."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from mmengine.logging import print_log


def draw_at_end(work_dir: str | Path) -> None:
    """Draws a run's ``losses.png``; a failure is an error line, as the training is done and saved."""
    try:
        draw_losses({Path(work_dir).name: work_dir}, Path(work_dir, "losses.png"))
    except Exception as error:  # whatever a drawing library raises
        print_log(f"losses.png not drawn: {type(error).__name__}: {error}", "current", logging.ERROR)


def read_losses(work_dir: str | Path) -> dict[int, float]:
    """Loss by step; a start replaces what earlier ones have logged from its first step on."""
    losses: dict[int, float] = {}
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.endswith("}")]  # a kill cuts the last one
        own = {row["step"]: row["loss"] for row in rows if "loss" in row}
        first = min(own, default=math.inf)
        losses = {step: loss for step, loss in losses.items() if step < first} | own
    return losses


def draw_losses(runs: Mapping[str, str | Path], out: str | Path) -> None:
    """Draws loss over steps as a PNG, one graph per run; ``runs`` is title to work directory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(runs), 3.4), dpi=120, layout="constrained")
    for axes, (title, work_dir) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        losses = read_losses(work_dir)
        axes.plot(losses.keys(), losses.values(), color="#2454cc", linewidth=1.4)
        axes.set(title=title, xlabel="step", ylabel="loss of the supervised tokens", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)
