"""Plans as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .hardware import GPU, UTILIZATION
from .job import Strategy
from .memory import GIB, Plan
from .plan import RunPlan


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


def memory_table(plan: Plan, strategy: Strategy, device: str, available: int) -> str:
    """Part by part, the sum, what is free, and the verdict."""
    rows = [(part, gib(amount)) for part, amount in plan.parts.items() if gib(amount) != "0.0"]
    rows += [(f"sum, most at: {plan.moment}", gib(plan.total))]
    rows += [(f"free of {gib(available)}: {verdict(plan, available)}", gib(available - plan.total))]
    rows += [("beside it, in the CPU's memory", gib(plan.host))] if plan.host else []
    return _table(f"Memory of one rank, {strategy.name} on {strategy.gpus} x {device}, GiB", rows)


def strategies_table(plans: Iterable[tuple[Strategy, Plan]], available: int) -> str:
    """All strategies, one row each."""
    rows = [("strategy", "GPU, GiB", "CPU, GiB", "")]
    for strategy, plan in plans:
        rows.append((strategy.name, gib(plan.total), gib(plan.host) if plan.host else "", verdict(plan, available)))
    return _table("All strategies", rows)


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells, each column as wide as its widest cell; those behind the first are set to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = ((row[0].ljust(first), *map(str.rjust, row[1:], others)) for row in rows)
    return "\n".join([title, *map("  ".join, cells), ""])
