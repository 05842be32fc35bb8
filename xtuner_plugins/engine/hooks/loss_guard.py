"""Stops a run whose loss explodes without becoming infinite or not a number."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...checkpoints.work_dir import checkpoint_step, newest_checkpoint
from ..console import step_line
from ..loops import TrainingStopped
from ..loss_level import LossLevel
from ..out_of_memory import name_sources
from ..steps import sources_of_all_ranks, unwrap
from .step_line import learning_rates

STATE = "loss_guard"
EXPLODED = ".exploded"


@HOOKS.register_module()
class LossGuardHook(Hook):
    """Stops a run after several steps in a row whose loss is far above its usual level (see `LossLevel`).

    The loss is that of the step over all ranks, which every rank has anyway, so all stop after the same step. While
    steps are high, `WholeCheckpointHook` puts checkpoints off. Where a run is stopped, checkpoints of the weights that
    the first high step was computed with, or of later ones, are renamed, so that nothing takes them for good. The
    level stands in every checkpoint: a resumed run judges as an uninterrupted one.

    Args:
        factor: A step is high when its loss is above this many times the level (and 2 nats above it). None switches the
            guard off.
        steps: High steps in a row that stop the run.
        window: Steps whose median is the level.

    Attributes:
        began: The first of the high steps in a row that the last one belongs to: ``step`` (from 1), ``line`` (its
            figures), ``sources`` (``file:line`` of its samples on all ranks); None while the loss isn't high.

    Raises:
        ValueError: An argument is out of range.
        TrainingStopped: The loss has exploded; on every rank.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, factor: float | None = 2.0, steps: int = 20, window: int = 100):
        if factor is not None and factor <= 1:
            raise ValueError(f"factor={factor!r} is out of range; give more than 1, or None to switch the guard off")
        for name, value in (("steps", steps), ("window", window)):
            if value < 1:
                raise ValueError(f"{name}={value!r} is out of range; give 1 or more")
        self.began: dict[str, Any] | None = None
        self._factor, self._steps, self._window = factor, steps, window
        self._level: LossLevel | None = None
        self._saved: dict[str, Any] | None = None

    def before_train(self, runner) -> None:
        """Starts with the loss of guessing, or where the checkpoint stands that the run resumes from."""
        if self._factor is None:
            return
        words = unwrap(runner.model).parts()["llm"].config.vocab_size
        self._level = LossLevel(math.log(words), self._factor, self._window)
        if runner.iter > 0 and self._saved is not None:  # not where a new run takes only weights
            self.began = self._saved["began"]
            self._level.restore(self._saved["level"])

    def after_train_iter(self, runner, batch_idx: int, data_batch: Sequence[dict], outputs: dict) -> None:
        """Judges the step."""
        if self._level is None or not outputs["supervised_tokens"]:
            return
        if not self._level.add(outputs["loss"]):
            self.began = None
            return
        if self.began is None:
            self.began = {
                "step": runner.iter + 1,
                "line": _figures(runner, outputs["loss"]),
                "sources": sources_of_all_ranks(data_batch),
            }
        if self._level.num_high >= self._steps:
            raise TrainingStopped(self._describe(runner, outputs["loss"], set_aside(runner, self.began["step"] - 1)))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds the level, and the high steps in a row."""
        if self._level is not None:
            checkpoint[STATE] = {"level": self._level.state(), "began": self.began}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keeps what a resumed run goes on with."""
        self._saved = checkpoint.get(STATE)

    def _describe(self, runner, loss: float, renamed: Sequence[Path]) -> str:
        good = newest_checkpoint(runner.work_dir)
        aside = f" ({', '.join(path.name for path in renamed)} holds exploded weights)" if renamed else ""
        again = f", and begin a new run from its weights with --cfg-options load_from={good}" if good else ""
        level = self._level
        return (
            f"step {runner.iter + 1}: the loss has exploded to {loss:.4g}: {level.num_high} steps in a row are above "
            f"{level.limit:.4g}, its level before was {level.level:.4g}. It began in {self.began['line']}, with the "
            f"samples {name_sources(self.began['sources'])}. The last good checkpoint is "
            f"{good or 'none: nothing good was saved'}{aside}. Lower lr or max_grad_norm, or raise warmup_ratio{again}"
            ". If such a loss is right for these data, set default_hooks.loss_guard.factor higher, or to None"
        )


def high_since(runner) -> int | None:
    """The step (from 1) since which the loss is far above its level; None while it isn't, or without a guard."""
    guard = next((hook for hook in runner.hooks if isinstance(hook, LossGuardHook)), None)
    return guard.began["step"] if guard is not None and guard.began else None


def set_aside(runner, step: int) -> list[Path]:
    """Renames the checkpoints of the work directory that hold the weights after ``step`` steps, or after more.

    Returns:
        Their new paths, the same on every rank.
    """
    found = {path: checkpoint_step(path) for path in Path(runner.work_dir).iterdir()}
    exploded = sorted(path for path, number in found.items() if number is not None and number >= step)
    renamed = [path.with_name(path.name + EXPLODED) for path in exploded]
    barrier()  # every rank has looked
    if is_main_process():
        for path, name in zip(exploded, renamed, strict=True):
            os.rename(path, name)
    barrier()
    return renamed


def _figures(runner, loss: float) -> str:
    """The step's figures as its line on the terminal has them."""
    norm = runner.message_hub.get_scalar("train/grad_norm").current()
    rates = learning_rates(runner.optim_wrapper.optimizer, unwrap(runner.model))
    line = step_line(runner.iter + 1, runner.max_iters, {"loss": loss, "grad_norm": norm}, rates)
    return "step " + ", ".join(line.removeprefix("step").strip().split("  "))
