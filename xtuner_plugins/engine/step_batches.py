"""The batches of one step of a run, taken without the run: by the loader, plan and iterator that train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..datasets.samplers import PlanSampler
from ..settings import ConfigError
from .loops import PlanIterator


@dataclass(frozen=True)
class Step:
    """What one rank trains on in one optimizer step.

    Attributes:
        number: Of the step, from 1.
        epoch: From 0.
        of_epoch: Number of the step in its epoch, from 1, and how many that epoch has; of a resumed run since the
            checkpoint.
        batches: The micro-batches, collated.
        dataset: Of the loader.
    """

    number: int
    epoch: int
    of_epoch: tuple[int, int]
    batches: list[dict[str, Any]]
    dataset: Any

    def describe(self) -> str:
        """Where it is in the run."""
        place, steps = self.of_epoch
        return f"step {self.number:,}, step {place:,} of {steps:,} in epoch {self.epoch + 1}"


def take_step(
    cfg: Config,
    number: int,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    seed: int | None = None,
    checkpoint: Mapping[str, Any] | None = None,
) -> Step:
    """The micro-batches of a step, collated in this process.

    Args:
        cfg: The config of the run.
        number: The step, from 1, as logs and checkpoints count.
        rank, num_ranks: Of the run, after a checkpoint those of the resumed one.
        seed: Of the run; None takes the config's.
        checkpoint: ``iter`` and ``plan`` of the checkpoint that the run was resumed from; only needed where the number
            of ranks or batches has changed there.

    Raises:
        ConfigError: The run has no such step or rank, no plan, or a new seed at every start.
        PlanChanged: The data isn't that of the checkpoint any more.
    """
    if not 0 <= rank < num_ranks:
        raise ConfigError(f"rank {rank} of {num_ranks}: ranks are numbered from 0; raise --ranks or lower --rank")
    loader = _build_loader(cfg, seed, rank, num_ranks)
    iterator = PlanIterator(loader, micro_batches(cfg))
    if not iterator.plan.is_seekable:
        raise ConfigError(
            f"train_dataloader.sampler: {type(loader.sampler).__name__} plans nothing, so no step can be shown before "
            "those before it; use PlanSampler"
        )
    done, place = 0, {"epoch": 0, "position": 0}
    if checkpoint is not None:
        done, place = checkpoint["iter"], checkpoint["plan"]
    if number <= done:
        raise ConfigError(f"step {number} was trained before the checkpoint of step {done}; leave out --checkpoint")
    iterator.skip_to(place)
    last = _last_step(cfg, iterator, done)
    if last is not None and number > last:
        raise ConfigError(f"the run ends with step {last:,}; there is no step {number:,}")
    steps = iterator.steps_ahead(place["epoch"] + 1)
    before = done
    while number - before > steps:
        before += steps
        place = {"epoch": place["epoch"] + 1, "position": 0}
        steps = iterator.steps_of_epoch(place["epoch"])
    within = number - before - 1
    iterator.skip_to(place)
    iterator.skip_steps(within)
    return Step(number, iterator.epoch, (within + 1, steps), next(iterator), loader.dataset)


def micro_batches(cfg: Config) -> int:
    """Micro-batches per optimizer step of a config, with or without DeepSpeed."""
    deepspeed = (cfg.get("strategy") or {}).get("config")
    if isinstance(deepspeed, Mapping) and isinstance(deepspeed.get("gradient_accumulation_steps"), int):
        return deepspeed["gradient_accumulation_steps"]
    return cfg.optim_wrapper.get("accumulative_counts", 1)


def _build_loader(cfg: Config, seed: int | None, rank: int, num_ranks: int) -> DataLoader:
    randomness = cfg.get("randomness") or {}
    seed = randomness.get("seed") if seed is None else seed
    settings = {**cfg.train_dataloader, "num_workers": 0, "persistent_workers": False, "prefetch_factor": None}
    if seed is None and settings["sampler"].get("seed") is None:
        raise ConfigError("randomness.seed isn't set, so every start has another order; give --seed, that of the run")
    batch_sampler = settings.get("batch_sampler")
    try:
        if not batch_sampler:
            loader = Runner.build_dataloader(settings, seed=seed)
            _set_ranks(loader.sampler, rank, num_ranks)
            return loader
        # The packs of an epoch are ordered for the ranks, so these are known before the first are made.
        plain = {key: value for key, value in settings.items() if key != "batch_sampler"}
        sampler = Runner.build_dataloader(plain, seed=seed).sampler
        _set_ranks(sampler, rank, num_ranks)
        return Runner.build_dataloader({**settings, "dataset": sampler.dataset, "sampler": sampler}, seed=seed)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"train_dataloader: {' '.join(str(error).split())[:300]}; correct the setting") from None


def _set_ranks(sampler: Any, rank: int, num_ranks: int) -> None:
    if isinstance(sampler, PlanSampler):
        sampler.rank, sampler.num_ranks = rank, num_ranks
        sampler.seek(0)


def _last_step(cfg: Config, iterator: PlanIterator, done: int) -> int | None:
    limits = [int(limit)] if (limit := cfg.train_cfg.get("max_iters")) else []
    if epochs := cfg.train_cfg.get("max_epochs"):
        limits.append(done + iterator.steps_ahead(epochs))
    return min(limits, default=None)
