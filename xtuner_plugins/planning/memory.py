"""Memory of one rank, part by part, at each moment of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from . import activations as act
from .job import FLOAT, MOMENTS, Batch, Job, Strategy

GIB = 2**30
PACKED = 0.5 + 1 / 64 + FLOAT / (64 * 256)  # bytes of a 4-bit weight: a byte per block of 64, a float per 256 blocks
# Not measured, and to be corrected where a GPU is at hand: CUDA's context with the kernels, NCCL's buffers, and the
# share of PyTorch's cache that fits no request.
CONTEXT = int(0.8 * GIB)
COMMUNICATION = int(0.5 * GIB)
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class Plan:
    """What a rank needs.

    Attributes:
        moment: when it needs most: `encode`, `loss`, `backward` or `step`.
        parts: bytes by part at that moment.
        moments: bytes of each moment, without `runtime` and `fragmentation`.
        host: bytes per rank in the CPU's memory.
    """

    moment: str
    parts: Mapping[str, int]
    moments: Mapping[str, int]
    host: int

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        return sum(self.parts.values())

    @property
    def measurable(self) -> int:
        """Bytes of tensors, without what only a GPU adds."""
        return max(self.moments.values())


def plan_memory(job: Job, strategy: Strategy) -> Plan:
    """The largest need over all micro-batches and moments of a step.

    Args:
        job: what runs.
        strategy: how it is spread.
    """
    job = under(job, strategy)
    held = _held(job, strategy)
    plans = (_plan(job, strategy, batch, held) for batch in job.batches)
    return max(plans, key=lambda plan: plan.total)


def under(job: Job, strategy: Strategy) -> Job:
    """The job with what a strategy decides: the dtype of trained weights, and what can't be recomputed.

    Under ZeRO the moments are float32, the only ones that it takes.
    """
    keeps_encoder = strategy.stage == 3 and "visual_encoder" in job.adapters
    plain = strategy.stage is None
    return replace(
        job,
        float_weights=plain,
        keeps_encoder=keeps_encoder,
        moments=job.moments if plain else MOMENTS,
    )


def _plan(job: Job, strategy: Strategy, batch: Batch, held: Mapping[str, int]) -> Plan:
    moments = {
        name: {**held, **parts, "ViT tiles": parts.get("ViT tiles", 0) + act.tile_bytes(job, batch)}
        for name, parts in _moments(job, strategy, batch).items()
    }
    sums = {name: sum(parts.values()) for name, parts in moments.items()}
    moment = max(sums, key=sums.get)
    runtime = CONTEXT + (COMMUNICATION if strategy.gpus > 1 else 0)
    parts = {**moments[moment], "CUDA, NCCL": runtime, "fragmentation": int(FRAGMENTATION * sums[moment])}
    return Plan(moment, parts, sums, _host_bytes(job, strategy))


def _held(job: Job, strategy: Strategy) -> dict[str, int]:
    """What stays from step to step: weights, the reference's copy, master copy, moments, buckets."""
    shards = strategy.gpus if strategy.stage else 1
    whole = strategy.gpus if strategy.stage == 3 else 1
    master = 0 if strategy.stage is None or not job.half else FLOAT
    trained_size = FLOAT if strategy.stage is None else job.size
    on_gpu, states_on_gpu = not strategy.offload_weights, not strategy.offload_optimizer
    frozen = job.frozen * job.size + packed_bytes(job)
    held = {
        "frozen weights": _share(frozen, whole) * on_gpu,
        "trained weights": _share(job.trained * trained_size, whole) * on_gpu,
        "master weights": _share(job.trained * master, shards) * states_on_gpu,
        "optimizer": _share(int(job.trained * job.moments), shards) * states_on_gpu,
    }
    if job.copied:
        held["reference"] = job.copied * job.size  # in the dtype of computing, whole on each GPU
    if strategy.stage is None:
        held["buffers"] = job.trained * FLOAT * (strategy.gpus > 1)  # DDP's buckets
    else:
        held["buffers"] = min(strategy.bucket, job.trained) * job.size * (1 + (strategy.overlap and strategy.stage < 3))
    if strategy.stage == 3:
        held["buffers"] += min(strategy.live, job.shape.parameters) * job.size
    return held


def packed_bytes(job: Job) -> int:
    """Of the weights that are held in 4 bits, with their scales."""
    return sum(
        job.stack(part).layers * int(linear.weights * PACKED)
        for part, names in job.quantized.items()
        for linear in job.stack(part).matching(names)
    )


def _moments(job: Job, strategy: Strategy, batch: Batch) -> dict[str, dict[str, int]]:
    """Parts beside those that stay, at each moment."""
    gradients, size = _gradient_bytes(job, strategy, job.trained), FLOAT if strategy.stage is None else job.size
    accumulates = job.accumulation > 1 or strategy.stage is not None  # ZeRO adds even a single micro-batch to its sums
    earlier = gradients if accumulates else 0  # of micro-batches before this one
    table = act.table_size(job) * size if "llm" in job.whole else 0  # the gradient of the head, or of the embedding
    casts = act.cast_bytes(job)
    in_graph = 0 if job.recompute else casts  # autocast itself forgets its copies after the forward pass
    projector, encoder = act.projector_kept_bytes(job, batch), act.encoder_kept_bytes(job, batch)
    kept = act.llm_kept_bytes(job, batch) + encoder + projector
    block = act.llm_backward_bytes(job, batch) + (act.llm_block_bytes(job, batch) if job.recompute else 0)
    moments = {
        "encoding": {"gradients": earlier, "ViT tiles": act.encoding_bytes(job, batch)},
        "loss": {
            "gradients": earlier,
            "autocast copies": casts,
            "activations": kept,
            "logits": act.logits_bytes(job, batch) + act.head_bytes(job),
        },
        "backward of the head": {
            "gradients": earlier,
            "autocast copies": in_graph,
            "activations": kept,
            "logits": act.pair_head_bytes(job, batch) if job.pairs else act.head_backward_bytes(job),
        },
        "backward": {"gradients": earlier + table, "autocast copies": in_graph, "activations": kept + block},
    }
    of_encoder = _gradient_bytes(job, strategy, _encoder_trained(job))
    rest = projector + encoder + block
    if accumulates:  # the embedding's gradient comes beside the accumulated one
        moments["end of backward"] = {"gradients": gradients + table, "activations": rest}
    else:
        moments["end of backward"] = {"gradients": gradients - of_encoder, "activations": max(rest - table, 0)}
    if job.encoder_blocks:
        block = act.encoder_backward_bytes(job, batch) + job.group * act.encoder_block_bytes(job, batch)
        here = encoder + block if accumulates else max(max(encoder - of_encoder, 0) + block - table, 0)
        moments["backward of the encoder"] = {"gradients": gradients, "activations": here}
    moments["step"] = {"gradients": gradients, "float32 gradients": _step_bytes(job, strategy)}
    return moments


def _encoder_trained(job: Job) -> int:
    whole = job.shape.encoder.parameters - job.shape.unused if "visual_encoder" in job.whole else 0
    whole += job.last_layers * job.shape.encoder.block
    adapters = job.adapters.get("visual_encoder")
    return whole + (adapters.parameters(job.shape.encoder) if adapters else 0)


def _gradient_bytes(job: Job, strategy: Strategy, trained: int) -> int:
    """Of the gradients of so many parameters, as they are held between two micro-batches."""
    if strategy.stage is None:
        return trained * FLOAT
    size = max(strategy.gradient_size, job.size)
    if strategy.stage < 2:
        return trained * size
    return 0 if strategy.offload_optimizer else _share(trained * size, strategy.gpus)


def _step_bytes(job: Job, strategy: Strategy) -> int:
    """What the optimizer's step takes: nothing in one fused kernel, under ZeRO the gradient in float32."""
    if strategy.offload_optimizer or strategy.stage is None or not job.half:
        return 0
    return _share(job.trained * FLOAT, strategy.gpus)


def _host_bytes(job: Job, strategy: Strategy) -> int:
    """In the CPU's memory: master copy, moments, float32 gradients, and weights where they are offloaded."""
    host = _share(job.trained * 4 * FLOAT, strategy.gpus) if strategy.offload_optimizer else 0
    return host + (_share(job.shape.parameters * job.size, strategy.gpus) if strategy.offload_weights else 0)


def _share(amount: int, ranks: int) -> int:
    return -(-amount // ranks)
