"""The training loop: an iteration is an optimizer step, and its position in the data is an integer.

An iteration takes ``accumulative_counts`` micro-batches, so steps, intervals, logs, schedules and checkpoints all
count optimizer steps. A step never crosses the end of an epoch: the last step of an epoch may have fewer micro-batches.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_rank, is_main_process
from mmengine.logging import print_log
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, FlexibleRunner, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ...datasets.plan.plan import plan_of, require_agreement
from ...ranges import check_length
from ...settings import ConfigError, complete
from ...weights.work_dir import newest_checkpoint, read_checkpoint
from ..watch.errors import OutOfMemory
from ..watch.stopping import command_to_go_on, requests, watching
from .loss_scaling import scaled_wrapper
from .param_groups import settle_grouping
from .schedulers import WarmupCosineLR, count_steps
from .steps import NonFiniteError, StepDropped, run_step, seed_step, unwrap

FEW_STEPS = 50


class TrainingStopped(ValueError):
    """A run that can't continue; raised on every rank with the same message."""

    on_every_rank = True


class PlanIterator:
    """Infinite iterator over optimizer steps that can start at any position of the plan.

    MMEngine resumes by fetching every batch that was already trained. This iterator skips by seeking: nothing is read
    or decoded, and the number of ranks may have changed.

    Args:
        dataloader: Its sampler is a `Plan` (`PlanSampler`, `PackBatchSampler`); `SettingError` where it isn't.
        micro_batches: Batches per step.

    Attributes:
        plan: Decides the samples of each epoch.
        epoch: Epoch of the last step (from 0).
        batches: Batches that this rank has taken since it entered the current epoch.
    """

    def __init__(self, dataloader: DataLoader, micro_batches: int = 1):
        self.plan = plan_of(dataloader)
        self._dataloader = dataloader
        self._micro_batches = micro_batches
        self._batch_size = dataloader.batch_sampler.batch_size  # in the plan's items
        self._taken_together = self._batch_size * self.plan.num_ranks  # in a micro-batch
        self._iterator: Iterator | None = None
        self._start = 0
        self.epoch, self.batches = 0, 0

    def position(self) -> dict[str, int | str]:
        """The position in the plan.

        Returns:
            ``epoch``; ``position``, the samples (or packs) of it that all ranks together have taken; ``cell``, the
            number of ranks that its order is made for; and the plan's ``digest``.
        """
        position = self._start + self.batches * self._taken_together
        return {"epoch": self.epoch, "position": position, "cell": self.plan.cell, "digest": self.plan.digest}

    def skip_to(self, place: dict[str, int | str]) -> None:
        """Makes the next step start at ``place``, which `position` returned.

        Raises:
            TrainingStopped: The position is in the middle of an epoch that now has other samples or another order.
        """
        if place["position"] and place.get("digest", self.plan.digest) != self.plan.digest:
            at = f"{place['position']:,} samples (or packs) of epoch {place['epoch'] + 1}"
            raise TrainingStopped(
                f"the data or its settings have changed since this checkpoint, which stands after {at}: going on would "
                "train some samples twice. Restore annotation files, images, seed and dataset settings; or begin a new "
                "run from these weights with --cfg-options load_from=CHECKPOINT"
            )
        self.epoch, self._start, self.batches, self._iterator = place["epoch"], place["position"], 0, None
        self.plan.seek(self.epoch, self._start, place.get("cell"))

    def skip_steps(self, count: int) -> None:
        """Makes the next step come ``count`` steps later."""
        while count >= (rest := self.steps_ahead(self.epoch + 1)):
            count -= rest
            self.skip_to({"epoch": self.epoch + 1, "position": 0})
        place = self.position()
        self.skip_to({**place, "position": place["position"] + count * self._micro_batches * self._taken_together})

    def steps_of_epoch(self, epoch: int) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(self._batches_of_epoch(epoch) / self._micro_batches)

    def count_steps(self, max_epochs: float) -> int:
        """Optimizer steps of ``max_epochs`` epochs, of which the last may be a fraction (rounded up)."""
        whole = int(max_epochs)
        rest = math.ceil((max_epochs - whole) * self.steps_of_epoch(whole)) if max_epochs > whole else 0
        # The first epoch is counted last: its packs are needed next.
        return rest + sum(map(self.steps_of_epoch, reversed(range(whole))))

    def steps_ahead(self, max_epochs: float) -> int:
        """Optimizer steps from here to the end of ``max_epochs``, with the current ranks and batches."""
        taken = math.ceil(self.position()["position"] / self._taken_together)
        rest = math.ceil(max(0, self._batches_of_epoch(self.epoch) - taken) / self._micro_batches)
        behind = self.count_steps(self.epoch) + self.steps_of_epoch(self.epoch) - rest
        return max(0, self.count_steps(max_epochs) - behind)

    def _batches_of_epoch(self, epoch: int) -> int:
        num_steps = self.plan.num_steps(epoch)
        return num_steps // self._batch_size if self._dataloader.drop_last else math.ceil(num_steps / self._batch_size)

    def __iter__(self) -> PlanIterator:
        return self

    def __next__(self) -> list[Any]:
        """The micro-batches of the next step."""
        if self._iterator is None:
            self._enter()
        step = self._take()
        if not step:
            self.epoch, self._start, self.batches = self.epoch + 1, 0, 0
            self._enter()
            step = self._take()
        self.batches += len(step)
        return step

    def give_back(self, step: list[Any]) -> None:
        """Notes that the last step wasn't trained, for `position`; only a run that ends does so."""
        self.batches -= len(step)

    def _take(self) -> list[Any]:
        return [batch for _, batch in zip(range(self._micro_batches), self._iterator, strict=False)]

    def _enter(self) -> None:
        cell = self.plan.cell if self._start else None  # a new epoch is ordered for the current number of ranks
        self.plan.seek(self.epoch, self._start, cell)
        self._iterator = iter(self._dataloader)


@LOOPS.register_module()
class PlannedTrainLoop(IterBasedTrainLoop):
    """Trains step by step and resumes at a position in the plan, without fetching what was trained.

    The number of micro-batches per step is ``optim_wrapper.accumulative_counts``, which XTuner reads too. Needs
    `StateHook`, which saves the position in every checkpoint.

    Args:
        runner: MMEngine's runner.
        dataloader: The loader or its config.
        max_iters: Optimizer steps of the run.
        max_epochs: Epochs of the run; the last may be a fraction. With both, the earlier end counts.

    Attributes:
        planned_epochs: ``max_epochs``.
        fetching_since: When the batches of the last step were asked for, of `time.perf_counter`.

    Raises:
        ValueError: As `check_length` and `count_steps`; or the ranks find different data.
    """

    def __init__(
        self,
        runner,
        dataloader: DataLoader | dict,
        max_iters: int | None = None,
        max_epochs: float | None = None,
    ):
        check_length(max_iters, max_epochs)
        if isinstance(dataloader, dict):  # a plain `Runner.from_cfg` has read the config without `read_config`
            complete(runner.cfg)
            complete({"model": runner.cfg.get("model"), "train_dataloader": dataloader})
        # MMEngine's own constructor would start the workers, but the position to start from isn't known yet.
        BaseLoop.__init__(self, runner, dataloader)
        self.micro_batches = _settle_optimizer(runner)
        self.dataloader_iterator = PlanIterator(self.dataloader, self.micro_batches)
        require_agreement(self.dataloader_iterator.plan)
        self.planned_epochs = max_epochs
        limits = [] if max_iters is None else [int(max_iters)]
        limits += [] if max_epochs is None else [self.dataloader_iterator.count_steps(max_epochs)]
        self._max_iters, self._max_epochs = min(limits), 1  # for MMEngine a run by iterations is one epoch
        self._max_iters_given = max_iters
        self._epoch, self._iter, self.stop_training, self.fetching_since = 0, 0, False, 0.0
        self.resume_at: dict[str, int] | None = None
        runner.param_schedulers = count_steps(runner.param_schedulers)

    def run(self):
        """Trains from the current position to the end, or until a signal stops it; returns the model."""
        if self._iter > 0:
            self._go_on()
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        if self._max_iters_given is None and self._max_iters < FEW_STEPS and is_main_process():  # because of the data
            few = f"this run has {self._max_iters} optimizer steps, too few to learn much: a step takes "
            few += f"{self.micro_batches} micro-batches on each rank; lower accumulative_counts (and batch_size), or "
            print_log(f"{few}raise max_epochs", "current", logging.WARNING)
        with watching():
            self._run_steps()
            self.runner.call_hook("after_train_epoch")
            self.runner.call_hook("after_train")
        if self._iter == self._max_iters:
            requests.agreed = None  # the run is complete
        elif requests.agreed and is_main_process():
            print_log(_how_to_go_on(self._iter, newest_checkpoint(self.runner.work_dir)), "current")
        return self.runner.model

    def _run_steps(self) -> None:
        network = unwrap(self.runner.model)
        self.runner.model.train()  # visits every module, so not in each step
        while self._iter < self._max_iters and not self.stop_training and not requests.agreed:
            if not network.training:  # a validation or a hook has left it in evaluation mode
                self.runner.model.train()
            self.fetching_since = time.perf_counter()
            self.run_iter(next(self.dataloader_iterator))

    def run_iter(self, data_batch: list[dict]) -> None:
        """Runs one optimizer step, unless a signal drops it; hooks get the list of its micro-batches.

        Raises:
            TrainingStopped, OutOfMemory: Loss or gradient isn't finite, or the memory isn't enough; no checkpoint is
                written or removed.
        """
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        seed_step(self.runner.seed, get_rank(), self._iter)
        try:
            outputs = run_step(self.runner.model, self.runner.optim_wrapper, data_batch)
        except StepDropped:
            self.dataloader_iterator.give_back(data_batch)
            return
        except (NonFiniteError, OutOfMemory) as error:
            said = f"step {self._iter + 1}: {error}. {last_good(self.runner.work_dir)}"
            if isinstance(error, OutOfMemory):
                raise OutOfMemory(said) from error
            raise TrainingStopped(f"{said}. Look at these samples, or lower the learning rate") from None
        self.runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs)
        self._iter += 1

    def _go_on(self) -> None:
        """Moves to the checkpoint's position, and plans the rest of the run."""
        iterator = self.dataloader_iterator
        if self.resume_at is None:  # no StateHook has saved it
            iterator.skip_steps(self._iter)
        else:
            iterator.skip_to(self.resume_at)
        if self.planned_epochs is None:
            return
        # The number of ranks or micro-batches may have changed: the rest of the data decides how many steps remain.
        rest = iterator.steps_ahead(self.planned_epochs)
        self._max_iters = min(self._iter + rest, self._max_iters_given or math.inf)
        for scheduler in self.runner.param_schedulers or ():
            if isinstance(scheduler, WarmupCosineLR):
                scheduler.end = self._max_iters


def last_good(work_dir: str | Path) -> str:
    """What the error of a run says of the checkpoint that is left."""
    return f"The last good checkpoint is {newest_checkpoint(work_dir) or 'none: nothing was saved yet'}"


def _how_to_go_on(step: int, saved: Path | None) -> str:
    """Two lines: what stopped the run and where it stands, and the command that continues it."""
    name = signal.Signals(requests.agreed).name
    if saved is None or not read_checkpoint(saved)["has_optimizer"]:
        return f"stopped by {name} after step {step}; no checkpoint to resume from: {saved or 'none is saved'}"
    return f"stopped by {name} after step {step}, saved to {saved}; go on with\n{command_to_go_on()}"


def planned_loop(runner) -> PlannedTrainLoop:
    """The loop of a run, for hooks that need its plan.

    Raises:
        ValueError: The run has another loop.
    """
    if not isinstance(runner.train_loop, PlannedTrainLoop):
        raise ValueError(
            f"train_cfg: {type(runner.train_loop).__name__} keeps no plan, which the hooks of xtuner_plugins need; set "
            "train_cfg=dict(type=PlannedTrainLoop, max_epochs=...)"
        )
    return runner.train_loop


def _settle_optimizer(runner) -> int:
    """Completes the optimizer's config before the runner builds it; returns the number of micro-batches per step.

    The number is taken out of the optimizer wrapper, which would average micro-batches without regard to their tokens.
    """
    settle_grouping(runner.optim_wrapper, runner.cfg)
    if isinstance(runner, FlexibleRunner):
        return runner.strategy.config.get("gradient_accumulation_steps", 1)
    runner.optim_wrapper = scaled_wrapper(runner.optim_wrapper, getattr(unwrap(runner.model), "dtype", None))
    return runner.optim_wrapper.pop("accumulative_counts", 1)


def take_step(
    cfg: Config, number: int, rank: int, num_ranks: int, seed: int | None
) -> tuple[int, list[dict[str, Any]], Any]:
    """What one rank trains on in one optimizer step, collated in this process.

    Args:
        cfg: The config of the run.
        number: The step, from 1.
        rank, num_ranks: Of the run.
        seed: Of the run; None takes the config's.

    Returns:
        The epoch (from 0), the micro-batches, and the loader's dataset.

    Raises:
        ConfigError: The run has no such step, no plan, or a new seed at every start.
    """
    loader, sampler = cfg.train_dataloader, cfg.train_dataloader.sampler
    seed = cfg.get("randomness", {}).get("seed") if seed is None else seed
    if seed is None and sampler.get("seed") is None:
        raise ConfigError("randomness.seed isn't set, so every start has another order; give --seed, that of the run")
    own = {"num_workers": 0, "persistent_workers": False, "prefetch_factor": None}
    try:
        loader = Runner.build_dataloader({**loader, **own, "sampler": {**sampler, "ranks": (rank, num_ranks)}}, seed)
    except (TypeError, KeyError) as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"train_dataloader: {said}; correct the setting (steps are known of PlanSampler)") from None
    iterator = PlanIterator(loader, micro_batches(cfg))
    ends = cfg.train_cfg.get("max_iters"), cfg.train_cfg.get("max_epochs")
    last = min(filter(None, (ends[0], ends[1] and iterator.count_steps(ends[1]))), default=number)
    if not 0 < number <= last:
        raise ConfigError(f"the run has the steps 1 to {last:,}; there is no step {number:,}")
    iterator.skip_steps(number - 1)
    batches = next(iterator)
    return iterator.epoch, batches, loader.dataset


def micro_batches(cfg: Config) -> int:
    """Micro-batches per optimizer step of a config, or of what a run under DeepSpeed has written."""
    deepspeed = cfg.get("strategy", {}).get("config", {})
    return deepspeed.get("gradient_accumulation_steps", cfg.optim_wrapper.get("accumulative_counts", 1))
