"""Plans as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from .job import Job, Strategy
from .memory import GIB, Plan
from .work import Work

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


def memory_table(plan: Plan, strategy: Strategy, available: int) -> Table:
    """Part by part, the sum, what is free, and the verdict."""
    gpus = f"{strategy.gpus} GPU{'s' * (strategy.gpus > 1)}"
    title = f"Memory of one rank, {strategy.name} on {gpus}"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for part, amount in plan.parts.items():
        if amount:
            table.add_row(part, gib(amount))
    table.add_section()
    table.add_row(f"sum, {MOMENTS[plan.moment]}", gib(plan.total))
    table.add_row(f"free of {gib(available)}", gib(available - plan.total))
    if plan.host:
        table.add_row("beside it, in the CPU's memory", gib(plan.host))
    table.add_row("verdict", verdict(plan, available))
    return table


def verdict(plan: Plan, available: int) -> str:
    """`fits`, `tight` (less than a tenth is free) or `does not fit`."""
    if plan.total > available:
        return "does not fit"
    return "tight" if plan.total > 0.9 * available else "fits"


def strategies_table(plans: Iterable[tuple[Strategy, Plan]], available: int) -> Table:
    """All strategies, one row each."""
    table = Table(title="All strategies", title_justify="left")
    for name in ("strategy", "GPU, GiB", "CPU, GiB", "verdict"):
        table.add_column(name, justify="right" if "GiB" in name else "left")
    for strategy, plan in plans:
        table.add_row(strategy.name, gib(plan.total), gib(plan.host) if plan.host else "", verdict(plan, available))
    return table


def work_table(job: Job, work: Work, samples: int) -> Table:
    """Operations of a sample and of an optimizer step, in 10**12."""
    table = Table(title="Operations, 10**12", title_justify="left")
    table.add_column("pass")
    table.add_column("per sample", justify="right")
    table.add_column(f"per step of {samples:,} samples", justify="right")
    rows: Mapping[str, float] = {
        "encoder, forward": work.encoder,
        "projector, forward": work.projector,
        "LLM, forward": work.llm,
        "  of it attention between tokens": work.attention,
        "backward": work.backward,
        "recomputed": work.recomputed,
        "reference, forward": work.reference,
        "all": work.total,
    }
    for name, amount in rows.items():
        if amount:
            table.add_row(name, f"{amount / 1e12:,.2f}", f"{samples * amount / 1e12:,.0f}")
    return table


def show(*parts: Table | str) -> None:
    """Prints tables and lines; without a terminal, as wide as they are."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for part in parts:
        console.print(part, markup=False, highlight=False)
