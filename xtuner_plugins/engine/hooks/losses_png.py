"""Keeps an image of the losses beside the checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ..curves import draw_losses


@HOOKS.register_module()
class LossesImageHook(Hook):
    """Draws the losses of all starts into ``losses.png`` of the work directory at the end of a run.

    A failure to draw is an error line: the training is done and saved.
    """

    priority = "LOWEST"  # after the last line

    def after_train(self, runner) -> None:
        """Draws on rank 0, where a step was logged."""
        if not is_main_process():
            return
        try:
            draw_losses({Path(runner.work_dir).name: runner.work_dir}, Path(runner.work_dir) / "losses.png")
        except Exception as error:  # whatever a drawing library raises
            text = f"losses.png not drawn: {type(error).__name__}: {error}"
            print_log(text, "current", logging.ERROR)
