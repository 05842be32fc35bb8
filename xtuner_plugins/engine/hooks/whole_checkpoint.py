"""Whole checkpoints of this model only: written aside, synced to disk, renamed; old ones are removed last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from mmengine.dist import all_gather_object, barrier, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from ...weights.staging import sync
from ...weights.work_dir import LAST_CHECKPOINT, OPTIMIZER_NAMES
from ..run.loops import TrainingStopped, last_good
from ..run.steps import unwrap
from ..run.strategy import require_same_parameters
from ..run.transfer import number_states, optimizer_names
from ..watch.stopping import requests

PARTIAL = ".partial"


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's hook, safe against kills and full disks, for plain files and DeepSpeed directories alike.

    A checkpoint gets its name once all of it is on disk; then ``last_checkpoint`` names it, and last of all checkpoints
    beyond ``max_keep_ckpts`` are removed (MMEngine removes first and writes in place). A plain file also gets the names
    of the optimizer's parameters, which a run under DeepSpeed needs to resume from it. A checkpoint of another model is
    refused: MMEngine would load what fits and only warn about the rest.

    It takes what MMEngine's takes: ``interval`` in optimizer steps, ``max_keep_ckpts``.

    Raises:
        ValueError: Parameters are missing from a checkpoint, unknown to the model, or differ in shape.
        TrainingStopped: No space left, or a failed write. Nothing half-written is left, and no earlier checkpoint was
            removed.
    """

    _saved_step: int | None = None

    def before_train(self, runner) -> None:
        """As MMEngine's; also removes half-written checkpoints of a killed run."""
        super().before_train(runner)
        if is_main_process():
            for path in Path(self.out_dir).glob(f".*{PARTIAL}"):
                _remove(path)
        barrier()

    def after_train(self, runner) -> None:
        """As MMEngine's; also saves the step after which a signal has stopped the run."""
        if requests.agreed and 0 < runner.iter != self._saved_step:
            runner.train_loop._iter -= 1  # MMEngine saves from within the step after which it saves
            try:
                self._save_checkpoint(runner)
            finally:
                runner.train_loop._iter += 1
        super().after_train(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds the names, where the optimizer's state is saved by number."""
        if "optimizer" in checkpoint:
            checkpoint[OPTIMIZER_NAMES] = optimizer_names(unwrap(runner.model), runner.optim_wrapper.optimizer)

    def after_load_checkpoint(self, runner, checkpoint: Mapping) -> None:
        """Compares names and shapes before MMEngine loads them; under DeepSpeed, the strategy has."""
        if "state_dict" not in checkpoint:
            return
        model = unwrap(runner.model)
        states = model.state_dict(), checkpoint["state_dict"]
        require_same_parameters(*({name: tuple(value.shape) for name, value in each.items()} for each in states))
        if isinstance(runner.optim_wrapper, OptimWrapper):
            number_states(checkpoint, model, runner.optim_wrapper)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        target = Path(self.out_dir) / self.filename_tmpl.format(step)
        self.last_ckpt = str(target)
        kept = [*(each for each in getattr(self, "keep_ckpt_ids", ()) if each != step), step]
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        beside = _partial(target)

        def write() -> None:
            own = {"save_optimizer": self.save_optimizer, "save_param_scheduler": self.save_param_scheduler}
            own |= {"by_epoch": self.by_epoch, "backend_args": self.backend_args}
            runner.save_checkpoint(self.out_dir, beside.name, meta=meta, **own, **self.args)

        def put_in_place() -> None:
            if is_main_process():
                _move_into_place(beside, target)
                pointer = Path(runner.work_dir, LAST_CHECKPOINT)
                _partial(pointer).write_text(str(target), encoding="utf-8")
                _move_into_place(_partial(pointer), pointer)

        failure = _first_failure(write, self.out_dir) or _first_failure(put_in_place, self.out_dir)
        self._saved_step = step
        if failure is not None:
            if is_main_process():
                _remove(beside)
            remedy = "Free some space and go on from it with --resume"
            raise TrainingStopped(
                f"checkpoint {target} could not be written: {failure}. {last_good(self.out_dir)}. {remedy}"
            )
        print_log(f"saved {target}", "current")
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = kept
            while self.max_keep_ckpts < len(kept):
                old = kept.pop(0)
                if is_main_process():
                    _remove(Path(self.out_dir) / self.filename_tmpl.format(old))


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}{PARTIAL}")


def _move_into_place(beside: Path, target: Path) -> None:
    for path in [*beside.rglob("*"), beside] if beside.is_dir() else [beside]:
        sync(path)
    if target.is_dir() or beside.is_dir():  # which no rename replaces; after a kill here the run goes on from before
        _remove(target)
    os.replace(beside, target)
    sync(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _first_failure(do: Callable[[], None], folder: str) -> str | None:
    """Why the first rank that failed did so. All ranks wait here, so none continues where another failed."""
    failure = None
    try:
        do()
    except (OSError, RuntimeError) as error:
        failure = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < 1 << 20:
            failure = "No space left on device"  # which torch's writer doesn't report
    return next((found for found in all_gather_object(failure) if found is not None), None)
