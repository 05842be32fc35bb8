"""What must be equal, each with its limit, measured on training runs of a tiny model.

Runs are those of `tools/train.py` in processes of their own. Their losses and gradient norms are read from their logs,
gradients from `GradientWitness`, weights and optimizer state from their checkpoints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import variants
from .contents import differing_tensors
from .runs import Run, logged, run_forked
from .samples import Samples, toy_samples
from .witness import gradient_file, gradient_gap

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
# Sums of float32 in another order; they grow over several updates.
LOSS, GRADIENT, LATER = 1e-6, 1e-5, 1e-5
SAVED_AT = 2  # steps, where a run is left and gone on with
LAST = 5


class RunFailed(Exception):
    """A training run that ended with an error, or not at all; the message is its last words."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: What must be equal.
        measured: Name, largest difference and limit of each thing that was compared.
        seconds: That it took.
        skipped: Why it wasn't measured; '' where it was.
        failed: What went wrong, other than a difference; '' for nothing.
        data: Which records it trained on: the config's ``own``, or ``toy`` ones.
    """

    name: str
    measured: list[tuple[str, float, float]] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str = ""
    failed: str = ""
    data: str = ""

    @property
    def details(self) -> str:
        """What was measured, or why nothing was, or what went wrong."""
        shown = [f"{what} {value:{'.1e' if value % 1 else '.0f'}} ({limit:g})" for what, value, limit in self.measured]
        return self.skipped or "; ".join([*shown, *filter(None, [self.failed])])

    @property
    def verdict(self) -> str:
        """``pass``, ``FAIL`` or ``skipped``."""
        if self.skipped:
            return "skipped"
        good = not self.failed and self.measured and all(value <= limit for _, value, limit in self.measured)
        return "pass" if good else "FAIL"


class Equalities:
    """The rows for one config.

    Args:
        tiny: The config as `variants.shrink` made it, on ``few`` samples.
        few: The samples of one step.
        many: Samples of several steps, for runs that are left and gone on with.
        base: The tiny base.
        folder: Gets everything that is written.
    """

    def __init__(self, tiny: Mapping[str, Any], few: Samples, many: Samples, base: Path, folder: Path):
        self.tiny, self.few, self.many, self.base, self.folder = tiny, few, many, base, folder
        self._steps = variants.whole_steps(tiny)

    def rows(self, strategies: Sequence[str], quick: bool) -> Iterator[tuple[str, Callable[[], Row]]]:
        """Name and function of each row, in order."""
        yield "packed = unpacked", self._packed
        for size in (4, 2, 1):
            count = variants.STEP // size
            yield f"{variants.STEP} x 1 = {size} x {count}", lambda size=size, count=count: self._batched(size, count)
        yield "recomputation on = off", self._recomputed
        yield "resumed = uninterrupted", self._resumed
        yield "export = live model", self._exported
        if quick:
            return
        for strategy in strategies:
            yield f"one rank = two ranks, {strategy}", lambda strategy=strategy: self._ranks(strategy)
        for strategy in strategies:
            yield f"images on one rank only, {strategy}", lambda strategy=strategy: self._mixed(strategy)

    def _packed(self) -> Row:
        packed = variants.in_packs(self._steps, self.few)
        return Row("", self._gaps(self._watched("packed", packed), self._whole()), data=_short(self.few))

    def _batched(self, size: int, count: int) -> Row:
        made = variants.in_batches(self._steps, size, count)
        return Row("", self._gaps(self._watched(f"batches_of_{size}", made), self._whole()), data=_short(self.few))

    def _recomputed(self) -> Row:
        gaps = []
        for is_on in (True, False):
            made = variants.in_batches(self._steps, variants.STEP // 2, 2)
            made["model"]["gradient_checkpointing"] = is_on
            gaps.append(self._watched(f"recomputation_{is_on}", made))
        return Row("", self._gaps(*gaps), data=_short(self.few))

    def _resumed(self) -> Row:
        made = self._going_on()
        whole = self._run("uninterrupted", made)
        rest = self._run("resumed", made, "--resume", str(whole / f"iter_{SAVED_AT}.pth"))
        count = len(differing_tensors(rest / f"iter_{LAST}.pth", whole / f"iter_{LAST}.pth"))
        differ = sum(a != b for a, b in zip(logged(rest), logged(whole)[SAVED_AT:], strict=True))
        return Row("", [("tensors that differ", count, 0), ("losses that differ", differ, 0)], data=_short(self.many))

    def _exported(self) -> Row:
        from ..checkpoints.export import export
        from ..checkpoints.io.reader import CheckpointError
        from ..inference.verify import verify

        work_dir = self._run("uninterrupted", self._going_on())
        config, checkpoint = work_dir / "uninterrupted.py", work_dir / f"iter_{LAST}.pth"
        row = Row("", data=_short(self.many))
        try:
            export(config, checkpoint, self.folder / "export", dtype="float32", code="ours")
            report = verify(config, checkpoint, self.folder / "export")
        except CheckpointError as error:
            row.failed = str(error)
            return row
        row.measured = [("logits", max(case.gap / case.scale for case in report.cases), report.tolerance)]
        return row

    def _ranks(self, strategy: str) -> Row:
        why = variants.unsupported(self._steps, strategy)
        if why:
            return Row("", skipped=why)
        made = variants.in_batches(self._steps, 2, variants.STEP // 4)
        work_dir = self._run(f"ranks_{strategy}", made, *_deepspeed(strategy), processes=2)
        return Row("", _log_gaps(work_dir, self._whole()), data=_short(self.few))

    def _mixed(self, strategy: str) -> Row:
        """Unshuffled, the second of two ranks gets every second record: text only."""
        why = variants.unsupported(self._steps, strategy)
        if why:
            return Row("", skipped=why)
        folder = self.folder / "mixed"
        dataset = self.tiny["train_dataloader"]["dataset"]
        if not folder.exists():
            toy_samples(dataset, self.base, folder, variants.STEP, why="made for it", alternating=True)
        settings = {"data_paths": [str(folder / "toy/train.jsonl")], "image_folders": [str(folder / "toy/images")]}

        def on_mixed(size: int) -> dict[str, Any]:
            made = variants.in_batches(self._steps, size, variants.STEP // 2)
            made["train_dataloader"]["dataset"].update(settings, dataset_settings=None)
            return made

        alone = self._run("mixed_alone", on_mixed(2))
        work_dir = self._run(f"mixed_{strategy}", on_mixed(1), *_deepspeed(strategy), processes=2)
        return Row("", _log_gaps(work_dir, alone), data="toy")

    def _going_on(self) -> dict[str, Any]:
        """The config's own kind of batches, with dropout, shuffled, with a worker if it has any."""
        made = (
            variants.in_packs(self.tiny, self.many, micro_batches=2)
            if variants.is_packed(self.tiny)
            else variants.in_batches(self.tiny, 1, min(4, self.tiny["optim_wrapper"].get("accumulative_counts", 1)))
        )
        made["train_dataloader"]["dataset"].update(self.many.settings)
        made["default_hooks"]["checkpoint"]["interval"] = SAVED_AT
        made["train_cfg"].update(max_iters=LAST, max_epochs=100)
        return made

    def _whole(self) -> Path:
        """The work directory of the run that others are compared with: all samples of a step in one batch."""
        return self._watched("whole", variants.in_batches(self._steps, variants.STEP, 1))

    def _watched(self, name: str, settings: Mapping[str, Any]) -> Path:
        return self._run(name, variants.with_witness(settings, self._gradients(name)))

    def _gradients(self, name: str) -> Path:
        return self.folder / f"{name}_gradients"

    def _gaps(self, work_dir: Path, reference: Path) -> list[tuple[str, float, float]]:
        files = [gradient_file(self._gradients(folder.name), 0) for folder in (work_dir, reference)]
        first, _, later = _log_gaps(work_dir, reference)
        return [first, ("gradient", gradient_gap(*files), GRADIENT), later]

    def _run(self, name: str, settings: Mapping[str, Any], *words: str, processes: int = 1) -> Path:
        """The work directory of a finished run, which is made once.

        Raises:
            RunFailed: It ended with an error, or was killed because it hung.
        """
        work_dir = self.folder / name
        if work_dir.exists():
            return work_dir
        path = self.folder / f"{name}.py"
        path.write_text(variants.source(settings), encoding="utf-8")
        arguments = [str(path), "--work-dir", str(work_dir), "--seed", "7", *words]
        run = run_forked(arguments, {**os.environ, "OMP_NUM_THREADS": "1"}, work_dir, processes=processes)
        if not run.ok:
            raise RunFailed(f"{_last_words(run)} (everything: {self.folder / name}.rank0.log)")
        return work_dir


def measure(name: str, make: Callable[[], Row]) -> Row:
    """A row with its name and time; what went wrong in its runs is in it."""
    begin = time.monotonic()
    try:
        row = make()
    except RunFailed as error:
        row = Row("", failed=str(error))
    row.name, row.seconds = name, time.monotonic() - begin
    return row


def _deepspeed(strategy: str) -> tuple[str, ...]:
    return () if strategy == "ddp" else ("--deepspeed", f"deepspeed_{strategy}")


def _short(samples: Samples) -> str:
    return "toy" if samples.is_toy else "own"


def _relative(one: float, other: float) -> float:
    return abs(one - other) / max(abs(other), 1e-30)


def _log_gaps(work_dir: Path, reference: Path) -> list[tuple[str, float, float]]:
    """The first loss, the first gradient norm, and both over all steps."""
    gaps = {}
    for key in ("loss", "grad_norm"):
        pairs = zip(logged(work_dir, key), logged(reference, key), strict=True)
        gaps[key] = [_relative(one, other) for one, other in pairs]
    later = max(max(values) for values in gaps.values())
    return [("loss", gaps["loss"][0], LOSS), ("gradient norm", gaps["grad_norm"][0], GRADIENT), ("steps", later, LATER)]


def _last_words(run: Run) -> str:
    if any(code < 0 for code in run.codes) and not run.errors:
        return f"the run hung or was killed (statuses {run.codes})"
    lines = [line for line in (run.output + run.others).splitlines() if line.strip()]
    return (run.errors or lines or ["it ended without a word"])[-1][:400]
