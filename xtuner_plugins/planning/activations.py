"""Bytes of activations, term by term: what is kept for the backward pass, and what comes and goes.

In the formulas below `size` is the bytes of an element (2 in bfloat16) and `wide` those of an element of the residual
stream, which is float32 where a part trains whole under autocast. Each formula lists the tensors that PyTorch saves
in the classes used here; `benchmarks/bench_memory_plan.py` runs these classes on fake CUDA tensors and compares.
"""

from __future__ import annotations

import math

from ..ranges import CHUNK_LOGITS, SOFTMAX_LOGITS
from .job import FLOAT, Batch, Job


def llm_block_bytes(job: Job, batch: Batch) -> int:
    """What a block of the LLM keeps without recomputation; of attention a denominator, float32 per head and token."""
    stack, size, wide = job.shape.llm, job.size, _wide(job, "llm")
    queries, keys = stack.heads * stack.head_dim, math.lcm(stack.kv_heads, job.sharing) * stack.head_dim
    kept = 2 * FLOAT * stack.width + FLOAT * stack.heads  # input of both norms; denominators
    kept += size * (2 * queries + 2 * keys + 3 * stack.inner)  # queries, output, keys, values; gate, its SiLU, up
    if stack.qk_norm:
        kept += FLOAT * (queries + keys)  # input of the norms of queries and keys
    if "llm" in job.whole:
        kept += 2 * wide * stack.width  # normalized inputs, for the norms' own gradient
        into = sum(each.active for each in stack.linears if each.inputs == stack.width and "o_proj" not in each.name)
        # Inputs of the linear layers; autocast copies them for each.
        kept += size * (stack.width * (into if job.autocasts else 2) + stack.inner)
        if stack.qk_norm:
            kept += size * (queries + keys)
    return batch.tokens * (kept + _adapter_bytes(job, "llm"))


def encoder_block_bytes(job: Job, batch: Batch) -> int:
    """What a block of the encoder keeps without recomputation, where a gradient passes through it."""
    stack, size = job.shape.encoder, job.size
    wide = FLOAT if job.autocasts or stack.rms_norm else size  # autocast computes layer norms in float32
    kept = 2 * wide * stack.width + FLOAT * stack.heads  # input of both norms; the softmax's denominators
    kept += size * (4 * stack.width + stack.inner)  # queries, keys, values, output; the activation's input
    kept += size * stack.inner * _is_clip(job)  # its quick GELU is a product, which keeps both factors
    if stack.qk_norm:
        kept += (2 * FLOAT + 2 * size) * stack.width  # queries and keys before their norms, in both dtypes
    if job.encoder_whole:
        kept += size * (2 * stack.width + stack.inner)  # inputs of the linear layers
        kept += size * 2 * stack.width  # both branches before their scales
        # Normalized inputs, for the gradient of the norms' weights.
        kept += stack.width * (2 * _wide(job, "visual_encoder") * stack.rms_norm + 2 * size * stack.qk_norm)
    return batch.tiles * job.shape.positions * (kept + _adapter_bytes(job, "visual_encoder"))


def _adapter_bytes(job: Job, part: str) -> int:
    """What LoRA in a block keeps per token: inputs, and A's outputs.

    With dropout each adapter has an input of its own, and a mask (a byte each). Otherwise layers with the same input
    share it, and that of the attention's last one is kept already.
    """
    adapters, linears = job.adapters.get(part), job.adapted(part)
    if adapters is None:
        return 0
    kept = sum(linear.active for linear in linears) * job.size * adapters.rank
    if adapters.dropout:
        return kept + sum(linear.inputs * linear.active for linear in linears) * (job.size + 1)
    others = [linear for linear in linears if not linear.name.endswith((".o_proj", ".out_proj", "attn.proj"))]
    inputs = {(each.name.split(".")[0], each.inputs): each.inputs * each.active for each in others}
    return kept + sum(inputs.values()) * job.size


def llm_kept_bytes(job: Job, batch: Batch) -> int:
    """Of the LLM: its blocks or, where they are recomputed, their inputs; the rotations; the last norm's input.

    The last norm's output isn't kept, only normalized values for the gradient of its weights. Of inputs in the host's
    memory the GPU holds one at a time.
    """
    stack, wide = job.shape.llm, _wide(job, "llm")
    block = batch.tokens * wide * stack.width if job.recompute else llm_block_bytes(job, batch)
    last = stack.width * (FLOAT + wide * ("llm" in job.whole)) + 2 * stack.head_dim * wide  # and cosine, sine
    return (1 if job.on_host else stack.layers) * block + batch.tokens * last


def encoder_kept_bytes(job: Job, batch: Batch) -> int:
    """Of the encoder when the loss is computed; nothing of blocks that no gradient passes through."""
    if not job.recompute_encoder:
        return job.encoder_blocks * encoder_block_bytes(job, batch)
    wide = _wide(job, "visual_encoder")
    # The first of the last blocks reads what a frozen one has computed.
    narrow = (wide - job.size) * (0 < job.encoder_blocks == job.last_layers) * (not _is_clip(job))
    return batch.tiles * job.shape.positions * job.shape.encoder.width * (job.encoder_blocks * wide - narrow)


def projector_kept_bytes(job: Job, batch: Batch) -> int:
    """Of the projector: merged patches, in float32 and normalized where it has a norm; both sides of the activation."""
    shape = job.shape
    per_patch = job.size + shape.projector_norm * (FLOAT if job.autocasts else job.size)
    per_token = shape.projector_input * per_patch + shape.llm.width * 2 * job.size
    return batch.tiles * shape.tokens_per_tile * per_token * job.projector_learns


def head_kept_bytes(job: Job, batch: Batch) -> int:
    """Of the hidden states that the head reads: their gradient, made in the forward pass; of pairs themselves."""
    return batch.supervised * job.shape.llm.width * (_wide(job, "llm") if job.pairs else job.size)


def output_bytes(job: Job, batch: Batch) -> int:
    """Of the LLM's output, and what of it the head reads: they go when the loss is there."""
    return (batch.tokens + batch.supervised) * job.shape.llm.width * _wide(job, "llm")


def tile_bytes(job: Job, batch: Batch) -> int:
    """Of the tiles themselves: pixels in float32, and in bfloat16 for the encoder."""
    return batch.tiles * 3 * job.shape.tile_size**2 * (FLOAT + (job.size if job.half else 0))


def encoding_bytes(job: Job, batch: Batch) -> int:
    """Of a frozen encoder at work: one block's input, normalized input, and both sides of the activation."""
    stack = job.shape.encoder
    return batch.tiles * job.shape.positions * job.size * (2 * stack.width + 2 * stack.inner)


def gathered_bytes(job: Job, batch: Batch) -> int:
    """Of the features of all tiles of a row that ranks share: what a rank sends, and what it gets."""
    features = batch.tiles * job.sharing * job.shape.tokens_per_tile * job.shape.llm.width * job.size
    return 2 * features * (job.sharing > 1)


def cast_bytes(job: Job, kept: bool) -> int:
    """Of autocast's copies of trained weights: all, or those kept for the backward pass (none where it recomputes)."""
    if not job.autocasts:
        return 0
    again = {"llm": kept and job.recompute, "visual_encoder": kept and job.recompute_encoder}
    whole = {"llm": job.shape.llm.layers * ("llm" in job.whole)}
    whole["visual_encoder"] = job.encoder_blocks * (job.encoder_whole > 0)
    copied = sum(job.shape.part(part) for part in ("projector", "mlp2", "router") if part in job.whole)
    for part in (part for part in whole if not again[part]):
        copied += whole[part] * sum(linear.parameters for linear in job.stack(part).linears)
        copied += job.adapter_parameters([part])
    return job.size * copied


def logits_bytes(job: Job, batch: Batch) -> int:
    """While the loss is computed: a chunk's logits, the softmax of some of them, and what is made for a trained head.

    `models/losses.py` runs the head in chunks, and writes the gradient in the logits' place; the gradient of all
    supervised positions is kept. A trained head has its gradient in float32, and autocast's copy.
    """
    elements = batch.supervised * job.shape.vocab_size
    logits = min(CHUNK_LOGITS, elements) * job.size + min(SOFTMAX_LOGITS, elements) * FLOAT * (1 + job.half)
    head = job.shape.table * (FLOAT + job.size * job.autocasts) * job.trains_head
    return logits + batch.supervised * job.shape.llm.width * job.size + head


def head_backward_bytes(job: Job, batch: Batch) -> int:
    """At the start of the backward pass: a trained head's gradient, and the same in the weight's dtype.

    That of pairs computes the logits of a chunk again, and only then the gradients.
    """
    gradient = job.shape.table * (FLOAT + (0 if job.float_weights else job.size)) * job.trains_head
    return max(logits_bytes(job, batch), gradient) if job.pairs else gradient


def llm_backward_bytes(job: Job, batch: Batch) -> int:
    """What comes and goes in the backward pass of one block of the LLM, beside what it keeps.

    Gradients of gate, up and their product, less what the block has freed; adapters on the layer behind them take their
    own way through dropout. Beside them one linear layer's weights, where they must be unpacked.
    """
    inner = job.shape.llm.inner
    is_adapted = any(linear.inputs == inner for linear in job.adapted("llm"))
    per_token = 3 * inner if is_adapted else job.size * inner * (2 if "llm" in job.whole else 3)
    largest = max(linear.inputs * linear.outputs for linear in job.shape.llm.linears)
    return batch.tokens * per_token + largest * job.size * ("llm" in job.quantized)


def encoder_backward_bytes(job: Job, batch: Batch) -> int:
    """What comes and goes in the backward pass of one block of the encoder, beside what it keeps."""
    return batch.tiles * job.shape.positions * job.size * (job.shape.encoder.inner + 2 * job.shape.encoder.width)


def _wide(job: Job, part: str) -> int:
    is_whole = part in job.whole or (part == "visual_encoder" and (job.encoder_whole or _is_clip(job)))
    return FLOAT if job.autocasts and is_whole else job.size


def _is_clip(job: Job) -> bool:
    """CLIP has a norm before its blocks, whose output is float32 under autocast, and so the residual stream is."""
    return job.shape.encoder.family.model_type == "clip_vision_model"
