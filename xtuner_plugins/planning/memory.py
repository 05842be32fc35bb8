"""Memory of one rank, part by part, at each moment of a step.

What a strategy holds per trained weight was read from live engines on n ranks (`benchmarks/bench_memory_plan.py
--states`), in bytes, for bfloat16 with sums of gradients in float32::

              weights   master   moments   sums    comes and goes
    DDP       4         -        8         4       4 in buckets where n > 1
    ZeRO-1    2         4/n      8/n       4       one gradient
    ZeRO-2    2         4/n      8/n       4/n     2/n and a bucket in the backward pass, 4/n at its end and in the step
    ZeRO-3    2/n       4/n      8/n       4/n     a bucket always, gathered weights, 4/n in the step
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from . import activations as act
from .job import FLOAT, MOMENTS, Batch, Job, Strategy

GIB = 2**30
PACKED = 0.5 + 1 / 64 + FLOAT / (64 * 256)  # bytes of a 4-bit weight: a byte per block of 64, a float per 256 blocks
SUBGROUP = 1_000_000_000  # DeepSpeed's sub_group_size: weights that ZeRO-3 updates at a time
# Not measured, and to be corrected where a GPU is at hand: CUDA's context with the kernels, NCCL's buffers, and the
# share of PyTorch's cache that fits no request.
CONTEXT = int(0.8 * GIB)
COMMUNICATION = int(0.5 * GIB)
FRAGMENTATION = 0.05
LIBRARIES = GIB  # of a process on a CPU: .8 when everything is imported, and a part of its data workers'


@dataclass(frozen=True)
class Plan:
    """What a rank needs, in bytes."""

    moment: str  # when it needs most, a key of `moments`
    parts: Mapping[str, int]  # at that moment
    moments: Mapping[str, int]  # tensors at each moment, without what only a GPU adds
    host: int  # in the CPU's memory

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        return sum(self.parts.values())

    def fits(self, available: int) -> bool:
        """Whether a GPU with so many bytes holds it."""
        return self.total <= available


def plan_memory(job: Job, strategy: Strategy) -> Plan:
    """The largest need over all micro-batches and moments of a step."""
    job = under(job, strategy)
    plans = (_plan(job, strategy, batch.shared(job.sharing)) for batch in job.batches)
    return max(plans, key=lambda plan: plan.total)


def under(job: Job, strategy: Strategy) -> Job:
    """The job with what a strategy decides: the dtype of trained weights, and what can't be recomputed.

    Under ZeRO the moments are float32, the only ones that it takes; under ZeRO-3 an encoder with LoRA isn't recomputed.
    """
    if strategy.stage is None:
        return replace(job, float_weights=True)
    again = job.recompute_encoder and not (strategy.stage == 3 and "visual_encoder" in job.adapters)
    return replace(job, float_weights=False, recompute_encoder=again, moments=MOMENTS)


def _plan(job: Job, strategy: Strategy, batch: Batch) -> Plan:
    held = _held(job, strategy)
    moments = {name: {**held, **parts} for name, parts in _moments(job, strategy, batch).items()}
    sums = {name: sum(parts.values()) for name, parts in moments.items()}
    moment = max(sums, key=sums.get)
    runtime = {"CUDA, NCCL": CONTEXT + (COMMUNICATION if strategy.gpus > 1 else 0)}
    runtime = {"Python, libraries": LIBRARIES} if strategy.on_cpu else runtime
    parts = {**moments[moment], **runtime, "fragmentation": int(FRAGMENTATION * sums[moment])}
    return Plan(moment, parts, sums, _host_bytes(job, strategy, batch))


def _held(job: Job, strategy: Strategy) -> dict[str, int]:
    """What stays from step to step: weights, the reference's copy, master copy, moments, buckets."""
    shards, whole = (strategy.gpus if has else 1 for has in (strategy.stage, strategy.stage == 3))
    trained_size, master = (FLOAT, 0) if strategy.stage is None else (job.size, FLOAT * job.half)
    on_gpu, states_on_gpu = not strategy.offload_weights, not strategy.offload_optimizer
    buckets = {None: job.trained * FLOAT * (strategy.gpus > 1), 3: strategy.bucket * job.size}
    return {
        "frozen weights": _share(job.frozen * job.size + int(job.packed * PACKED), whole) * on_gpu,
        "trained weights": _share(job.trained * trained_size, whole) * on_gpu,
        "reference": job.copied * job.size,  # in the dtype of computing, whole on each GPU
        "master weights": _share(job.trained * master, shards) * states_on_gpu,
        "optimizer": _share(int(job.trained * job.moments), shards) * states_on_gpu,
        "buffers": buckets.get(strategy.stage, 0),
    }


def _moments(job: Job, strategy: Strategy, batch: Batch) -> dict[str, dict[str, int]]:
    """Parts beside those that stay, at each moment."""
    sums = _sum_bytes(job, strategy, job.trained)
    accumulates = job.accumulation > 1 or strategy.stage is not None  # ZeRO adds even a single micro-batch to its sums
    earlier = sums if accumulates else 0  # of micro-batches before this one
    table = job.shape.table * (FLOAT if strategy.stage is None else job.size) * job.trains_head  # one on its way
    projector, encoder = act.projector_kept_bytes(job, batch), act.encoder_kept_bytes(job, batch)
    kept = act.llm_kept_bytes(job, batch) + encoder + projector
    block = act.llm_backward_bytes(job, batch) + (act.llm_block_bytes(job, batch) if job.recompute else 0)
    in_graph = act.cast_bytes(job, kept=True)  # autocast itself forgets its copies after the forward pass
    passes = {"ViT tiles": act.tile_bytes(job, batch), "gathered weights": _gathered_bytes(job, strategy)}
    back = {**passes, "gradients in buckets": _bucket_bytes(job, strategy)}
    gathered = act.gathered_bytes(job, batch)
    after = projector + encoder + block + gathered * job.projector_learns
    own = _sum_bytes(job, strategy, job.encoder_whole + job.adapter_parameters(["visual_encoder"]))
    if accumulates:  # the embedding's gradient comes beside the accumulated one
        end = {"gradients": sums + table, "activations": after}
    else:
        end = {"gradients": sums - own, "activations": max(after - table, 0)}
    loss = {"activations": kept + act.output_bytes(job, batch), "logits": act.logits_bytes(job, batch)}
    head = {"activations": kept + act.head_kept_bytes(job, batch), "logits": act.head_backward_bytes(job, batch)}
    encoding = max(act.encoding_bytes(job, batch), gathered)
    moments = {
        "encoding": {**passes, "gradients": earlier, "activations": encoding},
        "loss": {**passes, "gradients": earlier, "autocast copies": act.cast_bytes(job, kept=False), **loss},
        "backward of the head": {**back, "gradients": earlier, "autocast copies": in_graph, **head},
        "backward": {**back, "gradients": earlier + table, "autocast copies": in_graph, "activations": kept + block},
        "end of backward": {**back, **end},
    }
    if job.encoder_blocks:
        again = act.encoder_block_bytes(job, batch) if job.recompute_encoder else 0
        here = encoder + act.encoder_backward_bytes(job, batch) + again
        here = here if accumulates else max(max(encoder - own, 0) + here - encoder - table, 0)
        moments["backward of the encoder"] = {**back, "gradients": sums, "activations": here}
    twice = _share(job.trained * FLOAT, strategy.gpus) * (strategy.stage in (2, 3) and not strategy.offload_optimizer)
    if strategy.stage == 2:
        moments["sums"] = {**back, "gradients": sums + twice}
    if strategy.stage == 3:
        twice = min(twice, SUBGROUP * FLOAT)
    moments["step"] = {"gradients": sums, "float32 gradients": twice * job.half}
    return moments


def _sum_bytes(job: Job, strategy: Strategy, trained: int) -> int:
    """Of the gradients of so many parameters, as they are held between two micro-batches."""
    size = max(strategy.gradient_size, job.size) if strategy.stage else FLOAT
    if strategy.stage in (None, 1):
        return trained * size
    return 0 if strategy.offload_optimizer else _share(trained * size, strategy.gpus)


def _bucket_bytes(job: Job, strategy: Strategy) -> int:
    """Of gradients on their way in the backward pass; ZeRO-2 makes buckets of full size however little trains."""
    if strategy.stage == 2:
        own = _share(job.trained, strategy.gpus) * (not strategy.offload_optimizer)
        return job.size * (strategy.bucket * (1 + strategy.overlap) + own)
    # A full bucket is copied when no weights are on their way ahead.
    return job.size * max(min(strategy.bucket, job.trained) - strategy.prefetch, 0) * (strategy.stage == 3)


def _gathered_bytes(job: Job, strategy: Strategy) -> int:
    """Of weights that ZeRO-3 has gathered, and of the next ones on their way."""
    return job.size * min(strategy.live + strategy.prefetch, job.shape.parameters) * (strategy.stage == 3)


def _host_bytes(job: Job, strategy: Strategy, batch: Batch) -> int:
    """In the CPU's memory: master copy, moments, float32 gradients, weights and activations that are offloaded."""
    host = _share(job.trained * 4 * FLOAT, strategy.gpus) if strategy.offload_optimizer else 0
    host += act.llm_kept_bytes(replace(job, on_host=False), batch) if job.on_host else 0
    return host + (_share(job.shape.parameters * job.size, strategy.gpus) if strategy.offload_weights else 0)


def _share(amount: int, ranks: int) -> int:
    return -(-amount // ranks)
