"""What each way of spreading a recipe over its GPUs costs: memory, and what ranks send each other."""

from __future__ import annotations

from dataclasses import dataclass

from ..planning.communication import traffic_of
from ..planning.hardware import UTILIZATION
from ..planning.work import seconds
from .plan import model_of_base, plan_run, planned_gpu, settings_of_recipe, strategy_of
from .recipe import Recipe

STRATEGIES = (None, "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")


@dataclass(frozen=True)
class Cost:
    """What a strategy costs a recipe.

    Attributes:
        deepspeed: name for `--deepspeed`; None is DDP.
        memory: bytes of a GPU.
        received: bytes that a GPU receives from the others per optimizer step.
        seconds: of computing per optimizer step, at `UTILIZATION`.
    """

    deepspeed: str | None
    memory: int
    received: int
    seconds: float


def costs(recipe: Recipe) -> list[Cost]:
    """Of each strategy, for a recipe on its own GPUs."""
    model, settings, found = model_of_base(recipe.architecture), settings_of_recipe(recipe), []
    for name in STRATEGIES:
        strategy = strategy_of(name, recipe.processes)
        run = plan_run(settings, model, strategy)
        took = seconds(
            run.samples_per_step * run.work.total, recipe.processes, planned_gpu(recipe).teraflops, UTILIZATION
        )
        found.append(Cost(name, run.memory.total, traffic_of(run.job, strategy).total, took))
    return found
