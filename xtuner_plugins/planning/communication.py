"""Bytes that a rank receives from the others in an optimizer step: gradients, updated weights, gathered weights.

A ring hands each rank (n - 1) / n of what is summed, split or gathered over n ranks::

    DDP       gradients are summed: split once and gathered once, float32, in the last micro-batch
    ZeRO-1    gradients likewise (DeepSpeed's bfloat16 optimizer sums them whole); updated weights are gathered
    ZeRO-2    gradients are split in every micro-batch; updated weights are gathered
    ZeRO-3    gradients likewise; all weights are gathered in every forward pass, and again for every backward pass
              through them, frozen ones included
"""

from __future__ import annotations

from dataclasses import dataclass

from .job import FLOAT, Job, Strategy
from .memory import under


@dataclass(frozen=True)
class Traffic:
    """Bytes per rank and optimizer step.

    Attributes:
        gradients: summed or split.
        weights: updated ones, gathered once.
        gathered: weights that ZeRO-3 gathers before they are used.
    """

    gradients: int
    weights: int
    gathered: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.gradients + self.weights + self.gathered


def traffic_of(job: Job, strategy: Strategy) -> Traffic:
    """What an optimizer step of a job sends to each rank.

    Args:
        job: what runs.
        strategy: how it is spread.
    """
    job = under(job, strategy)
    share = (strategy.gpus - 1) / strategy.gpus
    if strategy.stage is None:
        return Traffic(int(2 * share * job.trained * FLOAT), 0, 0)
    weights = int(share * job.trained * job.size)
    if strategy.stage == 1:
        return Traffic(int(2 * share * job.trained * FLOAT), weights, 0)
    gradients = int(share * job.accumulation * job.trained * job.size)
    if strategy.stage == 2:
        return Traffic(gradients, weights, 0)
    return Traffic(gradients, 0, int(share * job.accumulation * gathered_weights(job) * job.size))


def gathered_weights(job: Job) -> int:
    """Weights that ZeRO-3 gathers for a micro-batch: once for the forward pass, once for each backward pass.

    Recomputation may add a third time, and weights that stay within `stage3_max_live_parameters` may save one. Both are
    left out.
    """
    shape = job.shape
    encoder = shape.encoder.parameters * (2 if job.encoder_blocks else 1)
    return encoder + shape.projector * (2 if job.projector_learns else 1) + 2 * shape.llm.parameters
