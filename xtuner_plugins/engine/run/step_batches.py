"""The batches of one step of a run, taken without the run: by the loader, plan and iterator that train it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.runner import Runner

from ...settings import ConfigError
from .loops import PlanIterator


class Step(NamedTuple):
    """What one rank trains on in one optimizer step.

    Attributes:
        number: Of the step, from 1, as logs and checkpoints count.
        epoch: From 0.
        batches: The micro-batches, collated.
        dataset: Of the loader.
    """

    number: int
    epoch: int
    batches: list[dict[str, Any]]
    dataset: Any


def take_step(
    cfg: Config, number: int, rank: int, num_ranks: int, seed: int | None, checkpoint: Mapping[str, Any] | None
) -> Step:
    """The micro-batches of a step, collated in this process.

    Args:
        cfg: The config of the run.
        number: The step, from 1.
        rank, num_ranks: Of the run, after a checkpoint those of the resumed one.
        seed: Of the run; None takes the config's.
        checkpoint: ``iter`` and ``plan`` of the checkpoint that the run was resumed from; only needed where the number
            of ranks or batches has changed there.

    Raises:
        ConfigError: The run has no such step, no plan, or a new seed at every start.
        PlanChanged: The data isn't that of the checkpoint any more.
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
    done = checkpoint["iter"] if checkpoint else 0
    if checkpoint:
        iterator.skip_to(checkpoint["plan"])
    ends = cfg.train_cfg.get("max_iters"), cfg.train_cfg.get("max_epochs")
    last = min(filter(None, (ends[0], ends[1] and done + iterator.steps_ahead(ends[1]))), default=number)
    if not done < number <= last:
        raise ConfigError(f"from here the run has the steps {done + 1:,} to {last:,}; there is no step {number:,}")
    iterator.skip_steps(number - done - 1)
    batches = next(iterator)
    return Step(number, iterator.epoch, batches, loader.dataset)


def micro_batches(cfg: Config) -> int:
    """Micro-batches per optimizer step of a config, or of what a run under DeepSpeed has written."""
    deepspeed = cfg.get("strategy", {}).get("config", {})
    return deepspeed.get("gradient_accumulation_steps", cfg.optim_wrapper.get("accumulative_counts", 1))
