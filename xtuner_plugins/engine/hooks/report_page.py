"""Keeps a page and an image of the run beside its checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ...settings import SETTINGS, value_at
from ..run_report import write_report

SIMPLE = (bool, int, float, str, type(None))


@HOOKS.register_module()
class ReportPageHook(Hook):
    """Writes ``report.html`` and ``loss.png`` into the work directory at every checkpoint and at the end.

    A page that can't be written stops no training: an error line names the cause, once for each cause, and the next
    checkpoint tries again. Rank 0 writes.
    """

    priority = "LOWEST"  # after checkpoints and lines

    def __init__(self):
        self._is_due = False
        self._told: set[str] = set()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Notes that there is something to show."""
        self._is_due = True

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Writes after a checkpoint."""
        if self._is_due:
            self._write(runner)

    def after_train(self, runner) -> None:
        """Writes at the end, after the last validation."""
        self._write(runner)

    def _write(self, runner) -> None:
        self._is_due = False
        if not is_main_process():
            return
        try:
            write_report(Path(runner.work_dir), settings_of(runner.cfg))
        except Exception as error:  # whatever a drawing library raises: the training is worth more
            cause = f"{type(error).__name__}: {error}"
            if cause not in self._told:
                self._told.add(cause)
                print_log(f"report.html and loss.png not written: {cause}; training goes on", "current", logging.ERROR)


def settings_of(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The settings that a config has, by their short names."""
    found = {name: value_at(cfg, setting.key) for name, setting in sorted(SETTINGS.items())}
    return {name: str(value) for name, value in found.items() if value is not None and _is_simple(value)}


def _is_simple(value: Any) -> bool:
    return isinstance(value, SIMPLE) or (isinstance(value, (list, tuple)) and all(map(_is_simple, value)))
