"""Floating-point operations of a sample: a multiplication and an addition are two."""

from __future__ import annotations

from dataclasses import dataclass

from .job import Batch, Job
from .shapes import Stack


@dataclass(frozen=True)
class Work:
    """Operations of the forward pass of each part, attention included, and of what runs beside it."""

    encoder: float
    projector: float
    llm: float
    backward: float  # of all parts
    recomputed: float  # forward passes that run again
    reference: float  # forward pass of the model as it was before training, on preference pairs

    @property
    def forward(self) -> float:
        """The forward pass of all parts."""
        return self.encoder + self.projector + self.llm

    @property
    def total(self) -> float:
        """All that runs."""
        return self.forward + self.backward + self.recomputed + self.reference


def work_of(job: Job, sample: Batch) -> Work:
    """Operations of one sample."""
    shape = job.shape
    attention = 2 * sample.tokens**2 * shape.llm.heads * shape.llm.head_dim * shape.llm.layers  # causal: half of it
    blocks = 2 * sample.tokens * shape.llm.layers * _active(shape.llm) + attention
    head = 2 * sample.supervised * shape.table
    llm = blocks + head
    per_tile = 2 * _active(shape.encoder) + 4 * shape.positions * shape.encoder.width
    encoder = sample.tiles * shape.positions * shape.used_layers * per_tile
    projector = 2 * sample.tiles * shape.tokens_per_tile * shape.part("projector")
    # The gradient of the inputs takes one forward pass, that of the weights another.
    reached = encoder * job.encoder_blocks / shape.used_layers
    backward = llm + projector + reached + reached * (job.encoder_whole > 0)
    backward += llm * ("llm" in job.whole) + head * job.train_head + projector * ("projector" in job.whole)
    recomputed = blocks * job.recompute + reached * job.recompute_encoder + head * job.pairs
    # A frozen encoder's output serves both models.
    reference = (llm + projector + encoder * (job.encoder_blocks > 0)) * job.reference
    return Work(encoder, projector, llm, backward, recomputed, reference)


def _active(stack: Stack) -> int:
    """Weights of a block that a token passes through."""
    return sum(linear.inputs * linear.outputs * linear.active for linear in stack.linears)
