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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.logging import print_log
from torch import nn

from ...models.losses import batch_weight, sum_over_ranks
from ..watch.errors import name_sources, naming
from ..watch.progress import progress
from ..watch.stopping import agree_to_stop
from .loss_scaling import MIN_SCALE


class NonFiniteError(ValueError):
    """Loss or gradient is infinite or not a number; raised on every rank.

    Attributes:
        sources: ``file:line`` of the samples that it came from.
    """

    def __init__(self, what: str, sources: Sequence[str]):
        self.what, self.sources = what, list(sources)
        super().__init__(f"{what}, from the samples {name_sources(self.sources)}")


class StepDropped(Exception):
    """A signal came before the last micro-batch of a step: no rank updates its weights."""


def unwrap(model: Any) -> nn.Module:
    """The `VisionLanguageModel` inside DDP or DeepSpeed wrappers."""
    if _is_deepspeed(model):
        model = model.model
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def _is_deepspeed(model: Any) -> bool:
    """Whether this is MMEngine's wrapper of DeepSpeed's engine, the only model that is no module.

    Its class would import DeepSpeed and OpenCV, which a plain run doesn't need.
    """
    return not isinstance(model, nn.Module)


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
        over ranks), and ``grad_norm`` unless the optimizer wrapper logs it. In float16 also ``loss_scale`` and
        ``overflows``, how often the step was repeated at half the scale.

    Raises:
        NonFiniteError: Loss or gradient norm isn't finite; in float16, not even unscaled.
        StepDropped: A signal told the run to stop.
        OutOfMemory: The memory of this rank isn't enough; names the micro-batch, or all of them at the update.
    """
    network = unwrap(model)
    device = next(network.parameters()).device
    driver = (_DeepSpeedDriver if _is_deepspeed(model) else _PlainDriver)(model, optim_wrapper)
    num_copies = getattr(network, "sequence_parallel", 1)  # of each batch: the ranks that share it
    weight = sum(batch_weight(batch) for batch in micro_batches) / num_copies
    weight = _to_device(weight, torch.float64, device)
    mean_weight = (sum_over_ranks(weight) / get_world_size()).float()
    num_overflows = 0
    while True:
        losses = _accumulate(driver, network, micro_batches, mean_weight)
        loss, num_supervised, num_tiles, *metrics = sum_over_ranks(losses.sum(dim=0)).tolist()
        if not math.isfinite(loss):
            own = zip(micro_batches, losses[:, 0].tolist(), strict=True)
            at_fault = [batch for batch, value in own if not math.isfinite(value)]
            raise NonFiniteError(f"the loss is {loss}", sources_of_all_ranks(at_fault))
        logged = {"loss": loss / get_world_size(), "supervised_tokens": num_supervised, "tiles": num_tiles}
        scale = driver.loss_scale
        with naming(micro_batches):
            norm, is_logged = driver.update()
        if math.isfinite(norm):
            break
        if scale is None or scale <= MIN_SCALE:
            sources = sources_of_all_ranks(micro_batches)
            raise NonFiniteError(f"the gradient norm is {norm} (loss {logged['loss']:.4g})", sources)
        num_overflows += 1
        print_log(
            f"gradients overflowed float16 at loss scale {scale:g}: the step is repeated at {driver.loss_scale:g}",
            "current",
        )
    progress.end()
    if scale is not None:
        logged |= {"loss_scale": scale, "overflows": num_overflows}
    logged |= network.end_step(dict(zip(network.metric_names, metrics, strict=True)))
    return logged if is_logged else {**logged, "grad_norm": norm}


def _to_device(number: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A number on the device; a copy that isn't from pinned memory would wait for all that a CUDA device has to do."""
    tensor = torch.tensor(number, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _accumulate(
    driver: _PlainDriver | _DeepSpeedDriver,
    network: nn.Module,
    micro_batches: Sequence[dict],
    mean_weight: torch.Tensor,
) -> torch.Tensor:
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
        progress.count(batch)
    return torch.stack(figures)


def sources_of_all_ranks(batches: Sequence[dict]) -> list[str]:
    """``file:line`` of the samples of collated batches; every rank calls it and gets those of all."""
    own = [str(source) for batch in batches for source in batch.get("sources", ())]
    return list(dict.fromkeys(source for sources in all_gather_object(own) for source in sources))


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

    def update(self) -> tuple[float, bool]:
        """Clips and steps; returns the gradient norm before clipping and whether MMEngine has logged it.

        Clipping by a norm that isn't finite would ruin every weight: such gradients are dropped, and where they are
        scaled, the scale is halved.
        """
        wrapper = self.optim_wrapper
        if self._scaler is not None:
            self._scaler.unscale_(wrapper.optimizer)
        parameters = (parameter for group in wrapper.param_groups for parameter in group["params"])
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        is_finite = math.isfinite(norm)
        if is_finite:
            wrapper.step()
        elif self._scaler is not None:
            self._scaler.update()
        wrapper.zero_grad()
        return norm, is_finite and bool(wrapper.clip_grad_kwargs) and wrapper.grad_name == "grad_norm"


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

    def update(self) -> tuple[float, bool]:
        """Clips and steps; returns the gradient norm before clipping, and that it isn't logged.

        At an overflow DeepSpeed drops the gradients, lowers the scale and keeps the norm of an earlier step.
        """
        self.optim_wrapper.step()
        if self.model.fp16_enabled() and self.model.optimizer.overflow:
            return math.inf, False
        return float(self.model.get_global_grad_norm() or 0.0), False
