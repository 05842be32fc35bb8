"""One optimizer step over several micro-batches: the loss is the mean over all supervised tokens of the step.

MMEngine and DeepSpeed average micro-batches, so a token of a short answer would weigh more than one of a long answer.
Here the supervised tokens of all micro-batches on all ranks are counted first, from the labels on the CPU, and each
micro-batch divides the sum of its losses by that count::

    rank 0:  sum of losses a, b, c, d  |
    rank 1:  sum of losses e, f, g, h  |  each / (weight of the step / ranks), then averaged over ranks by DDP or ZeRO
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_world_size
from torch import nn

from ...models.losses import batch_weight, sum_over_ranks
from ..watch.errors import name_sources, naming
from ..watch.stopping import agree_to_stop
from .loss_scaling import MIN_SCALE


class NonFiniteError(ValueError):
    """Loss or gradient is infinite or not a number; raised on every rank, and names the samples that it came from."""


class StepDropped(Exception):
    """A signal came before the last micro-batch of a step: no rank updates its weights."""


def unwrap(model: Any) -> nn.Module:
    """The `VisionLanguageModel` inside DDP or DeepSpeed wrappers."""
    if not isinstance(model, nn.Module):  # MMEngine's wrapper of DeepSpeed's engine, whose class imports DeepSpeed
        model = model.model
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


class Progress:
    """How far the current step of this process is. On a GPU micro-batches are handed over, not yet computed.

    Attributes:
        done, total: Micro-batches of the step; 0 between steps.
        tokens: Positions in those that are done.
        since: When the step began or ended, of `time.monotonic`.
    """

    def __init__(self):
        self.begin(0)

    def begin(self, total: int) -> None:
        """Starts a step; one of no micro-batches ends the last one."""
        self.done, self.total, self.tokens, self.since = 0, total, 0, time.monotonic()

    def __str__(self) -> str:
        seconds = time.monotonic() - self.since
        if not self.total:
            return f"loading its data, validating or saving, {seconds:.0f} s"
        return f"micro-batch {self.done} of {self.total}, {self.tokens:,} tokens, {seconds:.0f} s"


progress = Progress()


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seeds every random generator of this process for one optimizer step.

    Randomness within a step (dropout) then depends on seed, rank and step alone: a resumed run equals an uninterrupted
    one, and checkpoints need no generator states.
    """
    words = np.random.SeedSequence([seed, rank, step]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


def run_step(model: Any, optim_wrapper: Any, micro_batches: Sequence[dict]) -> dict[str, float]:
    """Forward and backward of every micro-batch, then one update of the parameters.

    Args:
        model: A `VisionLanguageModel`, plain or inside DDP or DeepSpeed's engine.
        optim_wrapper: MMEngine's optimizer wrapper, without gradient accumulation of its own.
        micro_batches: Collated batches on the CPU. Each gets ``sample_losses``, what the model returned under this
            name, on its device.

    Returns:
        Values to log: ``loss`` (mean over the step's supervised tokens), ``supervised_tokens`` and ``tiles`` (sums
        over ranks), and ``grad_norm`` before clipping. In float16 also ``loss_scale`` and ``overflows``, how often the
        step was repeated at half the scale.

    Raises:
        NonFiniteError: Loss or gradient norm isn't finite; in float16, not even unscaled.
        StepDropped: A signal told the run to stop.
        OutOfMemory: The memory of this rank isn't enough; names the micro-batch, or all of them at the update.
    """
    network = unwrap(model)
    device = next(network.parameters()).device
    driver = (_PlainDriver if isinstance(model, nn.Module) else _DeepSpeedDriver)(model, optim_wrapper)
    num_copies = getattr(network, "sequence_parallel", 1)  # of each batch: the ranks that share it
    weight = torch.tensor(sum(batch_weight(batch) for batch in micro_batches) / num_copies, dtype=torch.float64)
    if device.type == "cuda":  # a copy that isn't from pinned memory would wait for all that the device has to do
        weight = weight.pin_memory()
    mean_weight = (sum_over_ranks(weight.to(device, non_blocking=True)) / get_world_size()).float()
    num_overflows = 0
    while True:
        losses = _accumulate(driver, network, micro_batches, mean_weight)
        loss, num_supervised, num_tiles, *metrics = sum_over_ranks(losses.sum(dim=0)).tolist()
        if not math.isfinite(loss):
            own = zip(micro_batches, losses[:, 0].tolist(), strict=True)
            at_fault = [batch for batch, value in own if not math.isfinite(value)]
            raise NonFiniteError(f"the loss is {loss}, {_from_samples(at_fault)}")
        logged = {"loss": loss / get_world_size(), "supervised_tokens": num_supervised, "tiles": num_tiles}
        scale = driver.loss_scale
        with naming(micro_batches):
            norm = driver.update()
        if math.isfinite(norm):
            break
        if scale is None or scale <= MIN_SCALE:
            said = f"the gradient norm is {norm} (loss {logged['loss']:.4g})"
            raise NonFiniteError(f"{said}, {_from_samples(micro_batches)}")
        num_overflows += 1
    progress.begin(0)
    logged["grad_norm"] = norm
    if scale is not None:
        logged |= {"loss_scale": scale, "overflows": num_overflows}
    return logged | network.end_step(dict(zip(network.metric_names, metrics, strict=True)))


def _accumulate(driver, network: nn.Module, micro_batches: Sequence[dict], mean_weight: torch.Tensor) -> torch.Tensor:
    """Forward and backward of every micro-batch.

    Returns:
        float32 ``[micro-batches, 3 + metrics]``: loss, supervised tokens, tiles, and what `metric_names` names.
    """
    figures = []
    progress.begin(len(micro_batches))
    for index, batch in enumerate(micro_batches):
        if agree_to_stop():
            raise StepDropped
        with naming([batch]), driver.micro_step(is_last=index == len(micro_batches) - 1):
            inputs = network.data_preprocessor(batch, training=True)
            outputs = driver.model(**inputs, mode="loss", mean_weight=mean_weight)
            driver.backward(outputs["loss"])
        batch["sample_losses"] = outputs["sample_losses"]
        figures.append(torch.stack([outputs[key].detach().float() for key in ("loss", "num_supervised", "num_tiles")]))
        if network.metric_names:
            figures[-1] = torch.cat([figures[-1], outputs["metrics"].float()])
        progress.done, progress.tokens = progress.done + 1, progress.tokens + batch["input_ids"].numel()
    return torch.stack(figures)


def _from_samples(batches: Sequence[dict]) -> str:
    """Names the samples of collated batches; every rank calls it and gets those of all."""
    own = [str(source) for batch in batches for source in batch.get("sources", ())]
    return f"from the samples {name_sources(list(dict.fromkeys(sum(all_gather_object(own), []))))}"


class _PlainDriver:
    """Drives a plain model or DDP, which averages gradients over ranks in the last micro-batch only."""

    def __init__(self, model: nn.Module, optim_wrapper: Any):
        self.model, self.optim_wrapper = model, optim_wrapper
        self._scaler: torch.amp.GradScaler | None = getattr(optim_wrapper, "loss_scaler", None)

    @property
    def loss_scale(self) -> float | None:
        """The current scale; None where the loss isn't scaled."""
        return None if self._scaler is None else self._scaler.get_scale()

    @contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        alone = is_last or not hasattr(self.model, "no_sync")
        with nullcontext() if alone else self.model.no_sync(), self.optim_wrapper.optim_context(self.model):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        self.optim_wrapper.backward(loss)

    def update(self) -> float:
        """Clips and steps; returns the gradient norm before clipping.

        Clipping by a norm that isn't finite would ruin every weight: such gradients are dropped, and where they are
        scaled, the scale is halved. MMEngine's `step` would compute the norm again.
        """
        wrapper, scaler = self.optim_wrapper, self._scaler
        if scaler is not None:
            scaler.unscale_(wrapper.optimizer)
        trained = [p for group in wrapper.param_groups for p in group["params"] if p.grad is not None]
        clip = wrapper.clip_grad_kwargs or {}
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained], clip.get("norm_type", 2.0))
        if math.isfinite(norm):
            if "max_norm" in clip:
                torch.nn.utils.clip_grads_with_norm_(trained, clip["max_norm"], norm)
            elif clip:
                wrapper.clip_func(trained, **clip)
            wrapper.clip_grad_kwargs = None  # they are clipped
            wrapper.step()  # schedulers count the steps of the wrapper, not of its optimizer
            wrapper.clip_grad_kwargs = clip
        if scaler is not None:
            scaler.update()
        wrapper.zero_grad()
        return float(norm)


class _DeepSpeedDriver:
    """Drives DeepSpeed's engine: it is told where a step ends, and doesn't divide by the number of micro-batches."""

    def __init__(self, model: Any, optim_wrapper: Any):
        self.model, self.optim_wrapper = model.model, optim_wrapper
        self._scales = self.model.fp16_enabled() and self.model.optimizer.dynamic_loss_scale

    @property
    def loss_scale(self) -> float | None:
        """The current scale; None where DeepSpeed doesn't adapt one."""
        return float(self.model.optimizer.cur_scale) if self._scales else None

    @contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        self.model.backward(loss, scale_wrt_gas=False)

    def update(self) -> float:
        """As `_PlainDriver.update`; at an overflow DeepSpeed does the same, but keeps the norm of an earlier step."""
        self.optim_wrapper.step()
        if self.model.fp16_enabled() and self.model.optimizer.overflow:
            return math.inf
        return float(self.model.get_global_grad_norm() or 0.0)
