"""A run as one page and one image: settings, contract, curves, answered questions.

The page needs no other file and no network. It is English or Chinese by a button. The module gathers its contents;
`run_report.html.jinja` is the page.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..datasets.errors import DataError
from ..datasets.images.media import load_image
from ..html_page import render
from ..planning.report import duration
from .curves import CONTRACT_FILE, Series, grouped, read_lines, read_series

PAGE, LOSS_IMAGE, PANEL = "report.html", "loss.png", "panel.jsonl"
COLORS = ("#3f74d1", "#d9722e", "#2e9e5b", "#b1479c", "#8a6d3b", "#1d9aa6", "#c2404a", "#7a7f88")
NEUTRAL = "#7d8794"  # readable on light and dark pages
MAX_POINTS = 400  # of a drawn line
SMOOTHED_FROM = 40  # points; fewer are shown as they are
EXACT = ("lr", "peak_memory_gib")  # series without noise
MAX_CARDS, MAX_ANSWERS = 24, 6
THUMBNAIL = 320  # px

# What series show, in English and Chinese; others are shown by their names.
TITLES = {
    "loss": ("Loss of the supervised tokens", "监督词元的损失"),
    "val_loss": ("Validation loss", "验证损失"),
    "loss_by_dataset": ("Loss by dataset", "各数据集的损失"),
    "val_loss_by_dataset": ("Validation loss by dataset", "各数据集的验证损失"),
    "loss_by_tiles": ("Loss by number of tiles", "按图块数划分的损失"),
    "loss_by_tokens": ("Loss by length in tokens", "按词元长度划分的损失"),
    "lr": ("Learning rate", "学习率"),
    "grad_norm": ("Gradient norm before clipping", "裁剪前的梯度范数"),
    "tokens_per_second": ("Tokens per second", "每秒词元数"),
    "samples_per_second": ("Samples per second", "每秒样本数"),
    "padding": ("Share of padding", "填充占比"),
    "peak_memory_gib": ("Peak memory, GiB", "显存（内存）峰值，GiB"),
    "supervised_tokens": ("Supervised tokens per step", "每步的监督词元数"),
    "tiles": ("Tiles per step", "每步的图块数"),
    "time": ("Seconds per step", "每步用时（秒）"),
    "data_time": ("Seconds of a step waiting for data", "每步等待数据的时间（秒）"),
}


def write_report(work_dir: Path, settings: Mapping[str, Any]) -> None:
    """Writes `PAGE` and `LOSS_IMAGE` into a work directory, from what lies there.

    Args:
        work_dir: Of the run: ``run_contract.json``, each start's scalars, and `PANEL` where questions were answered.
        settings: Names and values to list.

    Raises:
        OSError: A file can't be read or written.
    """
    contract_file = work_dir / CONTRACT_FILE
    contract = json.loads(contract_file.read_text(encoding="utf-8")) if contract_file.is_file() else None
    series = read_series(work_dir)
    panel = work_dir / PANEL
    page = render(
        Path(__file__).parent,
        "run_report.html.jinja",
        name=work_dir.name,
        settings=settings,
        contract=contract,
        planned=contract and contract["estimate"]["seconds"] and duration(contract["estimate"]["seconds"]),
        last_step=max((points[-1][0] for points in series.values()), default=0),
        latest={name: points[-1][1] for name, points in series.items()},
        charts=[_chart(group, names, series) for group, names in grouped(series).items()],
        cards=cards(list(read_lines(panel)), work_dir) if panel.is_file() else [],
    )
    _replace(work_dir / PAGE, page.encode("utf-8", "replace"))
    if "loss" in series:
        lines = {name: series[name] for name in ("loss", "val_loss") if name in series}
        _replace(work_dir / LOSS_IMAGE, draw(lines, "png", size=(7.0, 4.0), label="loss"))


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    beside.replace(path)


def _chart(group: str, names: Sequence[str], series: Mapping[str, Series]) -> dict[str, Any]:
    lines = {name: series[name] for name in names}
    common = f"{group}/"
    legend = [
        (COLORS[index % len(COLORS)], name.removeprefix(common) if name != group else group, points[-1][1])
        for index, (name, points) in enumerate(lines.items())
    ]
    image = base64.b64encode(draw(lines, "svg")).decode()
    return {"name": group, "titles": TITLES.get(group, (group, group)), "image": image, "legend": legend}


def draw(lines: Mapping[str, Series], kind: str, size: tuple[float, float] = (4.4, 2.3), label: str = "") -> bytes:
    """Lines over steps as an image; long ones are thinned by means, noisy ones have a smooth line over them.

    Args:
        lines: By name; the colors are `COLORS` in this order.
        kind: ``svg`` with a transparent background, or ``png`` with a legend.
        size: Inches.
        label: Of the vertical axis.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    options = {"svg.fonttype": "none", "svg.hashsalt": "run", "font.size": 9, "axes.formatter.useoffset": False}
    with rc_context(options):
        figure = Figure(figsize=size, dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        left, bottom = (0.75 if label else 0.6) / size[0], 0.45 / size[1]
        figure.subplots_adjust(left, bottom, 1 - 0.1 / size[0], 1 - 0.12 / size[1])  # a layout engine takes a second
        for index, (name, points) in enumerate(lines.items()):
            color = COLORS[index % len(COLORS)]
            steps, values = thinned(points)
            is_noisy = len(values) >= SMOOTHED_FROM and not name.startswith(EXACT)
            alpha, mark = 0.3 if is_noisy else 1.0, "o" if len(values) < SMOOTHED_FROM else None
            axes.plot(steps, values, color=color, linewidth=1.0, alpha=alpha, marker=mark, markersize=2)
            if is_noisy:
                axes.plot(steps, smoothed(values), color=color, linewidth=1.5, label=name)
            else:
                axes.lines[-1].set_label(name)
        axes.set_xlabel("step", color=NEUTRAL)
        axes.set_ylabel(label, color=NEUTRAL)
        axes.tick_params(colors=NEUTRAL)
        axes.grid(alpha=0.25, color=NEUTRAL)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(NEUTRAL)
        if kind == "png":
            axes.legend(frameon=False)
        file = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(file, format=kind, transparent=kind == "svg", metadata=metadata)
    return file.getvalue()


def thinned(points: Series) -> tuple[list[float], list[float]]:
    """Steps and values of at most `MAX_POINTS` points, each the mean of as many neighbors."""
    each = -(-len(points) // MAX_POINTS)
    parts = [points[start : start + each] for start in range(0, len(points), each)]
    return [part[-1][0] for part in parts], [sum(value for _, value in part) / len(part) for part in parts]


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean that looks back over a twentieth of the line."""
    weight, mean, out = 1 / max(2.0, len(values) / 20), values[0], []
    for value in values:
        mean += weight * (value - mean)
        out.append(mean)
    return out


def cards(rows: Sequence[Mapping[str, Any]], work_dir: Path) -> list[dict[str, Any]]:
    """The answered questions, each with its latest answers; of a step that was run twice the later answer."""
    found: dict[tuple, dict[int, str]] = {}
    expected: dict[tuple, Any] = {}
    for row in rows:
        key = (row.get("image"), str(row.get("question", "")))
        found.setdefault(key, {})[int(row.get("step", 0))] = str(row.get("answer", ""))
        expected[key] = row.get("expected")
    shown = []
    for (image, question), answers in list(found.items())[:MAX_CARDS]:
        steps = sorted(answers)
        chosen = steps if len(steps) <= MAX_ANSWERS else [steps[0], *steps[1 - MAX_ANSWERS :]]
        card = {"question": question, "expected": expected[image, question], "image": None, "problem": None}
        if image is not None:
            try:
                card["image"] = _thumbnail(work_dir, str(image))
            except (OSError, ValueError, DataError) as error:
                card["problem"] = str(error)
        shown.append({**card, "answers": [(step, answers[step]) for step in chosen]})
    return shown


def _thumbnail(work_dir: Path, name: str) -> dict[str, Any]:
    path = (work_dir / name).resolve()
    if not path.is_relative_to(work_dir.resolve()):
        raise ValueError(f"{name} is outside of the work directory")
    image = load_image(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=82)
    return {"width": image.width, "height": image.height, "data": base64.b64encode(buffer.getvalue()).decode()}
