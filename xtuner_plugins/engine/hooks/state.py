"""What a checkpoint tells of its run beside weights: position in the data, preprocessing, and the run's record."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...datasets import MultimodalDataset, lock
from ...datasets.images.resize_rules import resize_facts
from ...weights import preprocessing, record
from ..run.loops import planned_loop
from ..run.steps import unwrap
from ..watch.stopping import started_by


@HOOKS.register_module()
class StateHook(Hook):
    """Saves position, preprocessing and record of the run in every checkpoint, and compares them on resuming.

    A checkpoint's ``plan`` is the position in the plan, its ``preprocessing`` and its ``record`` what
    `xtuner_plugins.weights.preprocessing` and `xtuner_plugins.weights.record` say.

    Raises:
        ValueError: The run has another loop than `PlannedTrainLoop`.
        CheckpointError: The checkpoint to resume from is that of another run.
    """

    _record: dict[str, Any] | None = None

    def before_train(self, runner) -> None:
        """Checks the loop, and reads the files of base and data, before the first step."""
        planned_loop(runner)
        self._describe(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds all three to what is saved."""
        checkpoint["plan"] = planned_loop(runner).dataloader_iterator.position()
        dataset = runner.train_dataloader.dataset
        if isinstance(dataset, MultimodalDataset):
            checkpoint[preprocessing.KEY] = describe_live(runner)
        checkpoint[record.KEY] = {**self._describe(runner), "run": _run_facts(checkpoint["meta"]["iter"])}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Tells the loop where to resume, and refuses another run's checkpoint; `load_from` may be anyone's."""
        if "plan" in checkpoint:
            planned_loop(runner).resume_at = checkpoint["plan"]
        if not getattr(runner, "_resume", False):
            return
        settings = record.settings_of(runner.cfg)
        path = str(runner._load_from)
        record.require_same_run(checkpoint.get(record.KEY), self._describe(runner), record.defaults_of(settings), path)

    def _describe(self, runner) -> dict[str, Any]:
        """The record of this run; rank 0 reads the files."""
        if self._record is None:
            own = {"ranks": get_world_size(), "seed": runner.seed, "resize_rule": resize_facts()["resize_rule"]}
            own["dtype"] = str(getattr(unwrap(runner.model), "dtype", None))
            said = [record.make(runner.cfg, runner.train_dataloader.dataset, **own) if is_main_process() else None]
            broadcast_object_list(said)
            self._record = said[0]
        return self._record


def describe_live(runner) -> dict[str, Any]:
    """How the data of a run are prepared, as `datasets.lock.describe` says it."""
    pixels = unwrap(runner.model).data_preprocessor
    mean, std = pixels.mean.flatten().tolist(), pixels.std.flatten().tolist()
    return lock.describe(runner.train_dataloader.dataset, mean, std)


def _run_facts(steps: int) -> dict[str, Any]:
    """Command, hardware and time of a checkpoint after so many steps, for the model card."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.cpu.get_capabilities()["cpu_name"]
    return {
        "command": started_by(os.environ),
        "hardware": f"{get_world_size()} x {name}",
        "steps": steps,
        "saved": datetime.now().isoformat(timespec="seconds"),
    }
