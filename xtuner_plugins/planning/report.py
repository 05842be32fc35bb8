"""Plans as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from .hardware import GPU, UTILIZATION
from .memory import GIB, Plan, Strategy
from .plan import RunPlan

MOMENTS = {
    "encoding": "while the frozen encoder reads the tiles",
    "loss": "when the loss is computed",
    "backward of the head": "at the start of the backward pass",
    "backward": "in the backward pass of the LLM's last block",
    "end of backward": "at the end of the LLM's backward pass",
    "backward of the encoder": "in the backward pass of the encoder",
    "sums": "when gradients are added to their sums",
    "step": "in the optimizer's step",
}


def gib(amount: float) -> str:
    """Bytes as GiB."""
    return f"{amount / GIB:.1f}"


def duration(seconds: float) -> str:
    """Seconds as hours, or minutes below one hour."""
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"


def sentence(memory: Plan, plan: RunPlan, gpu: GPU) -> str:
    """Memory, steps and time of a run on one GPU, in a line."""
    said = f"{gpu.name}: {gib(memory.total)} of {gpu.memory:g} GiB planned"
    if plan.steps is None:
        return f"{said}; no time planned, since nobody has counted the records"
    said += f"; {plan.steps:,} steps of {plan.samples_per_step} samples"
    if seconds := gpu.teraflops and plan.seconds(gpu.teraflops, UTILIZATION):
        most = "" if plan.lengths.is_measured else "at most "
        said += f", {most}{duration(seconds)} planned at {UTILIZATION:.0%} of {gpu.teraflops:g} TFLOPS"
    return f"{said}; not run yet"


def verdict(plan: Plan, available: int) -> str:
    """`fits`, `tight` (less than a tenth is free) or `does not fit`."""
    return ("tight" if plan.total > 0.9 * available else "fits") if plan.fits(available) else "does not fit"


def memory_table(plan: Plan, strategy: Strategy, device: str, available: int) -> Table:
    """Part by part, the sum, what is free, and the verdict."""
    rows = [(part, gib(amount)) for part, amount in plan.parts.items() if gib(amount) != "0.0"]
    sums = [(f"sum, {MOMENTS[plan.moment]}", gib(plan.total))]
    sums += [(f"free of {gib(available)}", gib(available - plan.total))]
    sums += [("beside it, in the CPU's memory", gib(plan.host))] if plan.host else []
    title = f"Memory of one rank, {strategy.name} on {strategy.gpus} x {device}"
    return _table(title, ["part", "GiB"], rows, [*sums, ("verdict", verdict(plan, available))])


def strategies_table(plans: Iterable[tuple[Strategy, Plan]], available: int) -> Table:
    """All strategies, one row each."""
    columns, rows = ["strategy", "GPU, GiB", "CPU, GiB", "verdict"], []
    for strategy, plan in plans:
        rows.append((strategy.name, gib(plan.total), gib(plan.host) if plan.host else "", verdict(plan, available)))
    return _table("All strategies", columns, rows)


def _table(title: str, columns: Sequence[str], rows: Iterable[tuple], sums: Iterable[tuple] = ()) -> Table:
    table = Table(title=title, title_justify="left", min_width=len(title))
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index and name != "verdict" else "left")
    for part in (rows, sums):
        for row in part:
            table.add_row(*row)
        table.add_section()
    return table


def show(*parts: Table | str) -> None:
    """Prints tables and lines; without a terminal, as wide as they are."""
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    for part in parts:
        console.print(part, markup=False, highlight=False)
