"""Training runs of the tests in forked children (see `xtuner_plugins.selftest.runs`)."""

from collections.abc import Callable
from pathlib import Path

from xtuner_plugins.selftest import runs
from xtuner_plugins.selftest.runs import Run

from .parallel_case import ROOT, training


def train_forked(
    work_dir: Path,
    base: Path,
    data: tuple[Path, Path],
    *,
    processes: int = 1,
    prepare: Callable[[], None] | None = None,
    **case,
) -> Run:
    """Runs `xtuner_plugins.cli.train_process` in forked children on a global batch of 4.

    Args:
        work_dir, base, data, processes: As `parallel_case.training`.
        prepare: As `run_forked`.
        **case: As `parallel_case.training`.
    """
    arguments, env = training(work_dir, base, data, processes=processes, **case)
    return run_forked(arguments, env, work_dir, processes=processes, prepare=prepare)


def run_forked(*args, **options) -> Run:
    """As `runs.run_forked`, in the checkout."""
    return runs.run_forked(*args, folder=ROOT, **options)
