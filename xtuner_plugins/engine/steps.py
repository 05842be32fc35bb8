"""One optimizer step over several micro-batches: the gradient is the mean over all supervised tokens of the step.

MMEngine and DeepSpeed average micro-batches, so a token of a short answer would weigh more than one of a long answer.
Here the supervised weight of all micro-batches on all ranks is counted first, from the labels on the CPU, and every
micro-batch divides the sum of its losses by it::

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
from mmengine._strategy.deepspeed import MMDeepSpeedEngineWrapper
from mmengine.dist import all_gather_object
from torch import nn

from ..models.losses import batch_weight, sum_over_ranks, world_size

SHOWN_SOURCES = 8


class NonFiniteError(ValueError):
    """Loss or gradient is infinite or not a number; raised on every rank alike.

    Attributes:
        sources: ``file:line`` of the samples that it came from.
    """

    def __init__(self, what: str, sources: Sequence[str]):
        self.what, self.sources = what, list(sources)
        more = len(self.sources) - SHOWN_SOURCES
        shown = ", ".join(self.sources[:SHOWN_SOURCES]) + (f" and {more} more" if more > 0 else "")
        super().__init__(f"{what}, from the samples {shown or '(none named)'}")


def unwrap(model: Any) -> nn.Module:
    """The `VisionLanguageModel` inside DDP or DeepSpeed wrappers, which pass on their model's attributes."""
    if isinstance(model, MMDeepSpeedEngineWrapper):
        model = model.model
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seeds every generator of this process for one optimizer step.

    What is random in a step (dropout) is a function of seed, rank and step alone. So a run that was killed goes on
    exactly as an uninterrupted one, whatever else drew random numbers before, and checkpoints need no generator states.
    """
    words = np.random.SeedSequence([seed, rank, step]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


def run_step(model: Any, optim_wrapper: Any, micro_batches: Sequence[dict]) -> dict[str, float]:
    """Forward and backward of every micro-batch, then one update of the parameters.

    Args:
        model: A `VisionLanguageModel`, plain, inside DDP, or inside DeepSpeed's engine.
        optim_wrapper: MMEngine's, built without accumulation of its own.
        micro_batches: Collated batches on the CPU.

    Returns:
        What is logged: ``loss`` (mean over the step's supervised tokens), ``supervised_tokens`` and ``tiles`` (sums
        over ranks), and ``grad_norm`` where the optimizer wrapper doesn't log it itself.

    Raises:
        NonFiniteError: Loss or gradient norm isn't finite. Nothing was saved yet.
    """
    network = unwrap(model)
    device = next(network.parameters()).device
    driver = (_DeepSpeedDriver if isinstance(model, MMDeepSpeedEngineWrapper) else _PlainDriver)(model, optim_wrapper)
    weight = torch.tensor(sum(batch_weight(batch) for batch in micro_batches), dtype=torch.float64, device=device)
    mean_weight = (sum_over_ranks(weight) / world_size()).float()
    figures = []
    for index, batch in enumerate(micro_batches):
        with driver.micro_step(is_last=index == len(micro_batches) - 1):
            outputs = driver.forward(network.data_preprocessor(batch, training=True), mean_weight)
            driver.backward(outputs["loss"])
        figures.append(torch.stack([outputs[key].detach().float() for key in ("loss", "num_supervised", "num_tiles")]))
    losses = torch.stack(figures)
    loss, num_supervised, num_tiles = sum_over_ranks(losses.sum(dim=0)).tolist()
    if not math.isfinite(loss):
        own = zip(micro_batches, losses[:, 0].tolist(), strict=True)
        at_fault = [batch for batch, value in own if not math.isfinite(value)]
        raise NonFiniteError(f"the loss is {loss}", _sources_of_all_ranks(at_fault))
    logged = {"loss": loss / world_size(), "supervised_tokens": num_supervised, "tiles": num_tiles}
    norm, is_logged = driver.update()
    if not math.isfinite(norm):
        raise NonFiniteError(
            f"the gradient norm is {norm} (loss {logged['loss']:.4g})", _sources_of_all_ranks(micro_batches)
        )
    return logged if is_logged else {**logged, "grad_norm": norm}


def _sources_of_all_ranks(batches: Sequence[dict]) -> list[str]:
    own = [str(source) for batch in batches for source in batch.get("sources", ())]
    return [source for sources in all_gather_object(own) for source in sources]


class _PlainDriver:
    """One process, or DDP: gradients cross ranks in the last micro-batch only."""

    def __init__(self, model: nn.Module, optim_wrapper: Any):
        self.model, self.optim_wrapper = model, optim_wrapper

    @contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        alone = is_last or not hasattr(self.model, "no_sync")
        with nullcontext() if alone else self.model.no_sync(), self.optim_wrapper.optim_context(self.model):
            yield

    def forward(self, inputs: dict, mean_weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.model(**inputs, mode="loss", mean_weight=mean_weight)

    def backward(self, loss: torch.Tensor) -> None:
        self.optim_wrapper.backward(loss)

    def update(self) -> tuple[float, bool]:
        """Clips and steps; returns the gradient norm before clipping and whether MMEngine has logged it."""
        clips_norm = bool(self.optim_wrapper.clip_grad_kwargs) and self.optim_wrapper.grad_name == "grad_norm"
        norm = 0.0
        if not clips_norm:
            gradients = [
                p.grad for group in self.optim_wrapper.param_groups for p in group["params"] if p.grad is not None
            ]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        self.optim_wrapper.step()
        self.optim_wrapper.zero_grad()
        if clips_norm:
            norm = self.optim_wrapper.message_hub.get_scalar("train/grad_norm").current()
        return norm, clips_norm


class _DeepSpeedDriver:
    """DeepSpeed's engine, told where a step ends; it counts to a fixed number by itself, and divides by it."""

    def __init__(self, model: MMDeepSpeedEngineWrapper, optim_wrapper: Any):
        self.engine, self.optim_wrapper = model.model, optim_wrapper

    @contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(is_last)
        yield

    def forward(self, inputs: dict, mean_weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.engine(**inputs, mode="loss", mean_weight=mean_weight)

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def update(self) -> tuple[float, bool]:
        """Clips and steps; returns the gradient norm before clipping."""
        self.optim_wrapper.step()
        return float(self.engine.get_global_grad_norm() or 0.0), False
