"""Bytes of activations, term by term: what is kept for the backward pass, and what comes and goes.

In the formulas below `size` is the bytes of an element (2 in bfloat16) and `wide` those of an element of the residual
stream, which is float32 where a part trains whole under autocast. Each formula lists the tensors that PyTorch saves
in the classes used here; `benchmarks/bench_memory_plan.py` counts the same tensors in the classes themselves.
"""

from __future__ import annotations

from dataclasses import replace

from ..ranges import CHUNK_LOGITS, SOFTMAX_LOGITS
from .job import FLOAT, Batch, Job
from .shapes import Linear


def logits_bytes(job: Job, batch: Batch) -> int:
    """Of a chunk's logits, of those of them that a softmax is made of, twice in float32, and of the hidden states.

    `models/loss_head.py` runs the head in chunks, and writes the gradient in the logits' place; the gradient of all
    supervised positions is kept.
    """
    elements = batch.supervised * job.shape.vocab_size
    logits = min(CHUNK_LOGITS, elements) * job.size + min(SOFTMAX_LOGITS, elements) * FLOAT * (1 + job.half)
    return logits + batch.supervised * job.shape.llm.width * job.size


def attention_bytes(job: Job, batch: Batch) -> int:
    """Of a layer's attention beside queries, keys, values and output: nothing grows with S squared.

    A fused kernel keeps the logarithm of the softmax's denominator, float32 per head and token.
    """
    return batch.tokens * job.shape.llm.heads * FLOAT


def llm_block_bytes(job: Job, batch: Batch) -> int:
    """What a block of the LLM keeps without recomputation."""
    stack, size, wide = job.shape.llm, job.size, _wide(job, "llm")
    queries, keys = stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
    kept = 2 * FLOAT * stack.width  # input of both norms
    kept += size * (2 * queries + 2 * keys)  # queries, output, keys, values
    kept += size * 3 * stack.inner  # gate, its SiLU, up
    if stack.kind.startswith("qwen3"):
        kept += FLOAT * (queries + keys)  # input of the norms of queries and keys
    if "llm" in job.whole:
        kept += 2 * wide * stack.width  # normalized inputs, for the norms' own gradient
        into = sum(each.active for each in stack.linears if each.inputs == stack.width and "o_proj" not in each.name)
        # Inputs of the linear layers; autocast copies them for each.
        kept += size * (stack.width * (into if job.autocasts else 2) + stack.inner)
        if stack.kind.startswith("qwen3"):
            kept += size * (queries + keys)
    return batch.tokens * (kept + adapter_bytes(job, "llm")) + adapter_copies(job, "llm") + attention_bytes(job, batch)


def encoder_block_bytes(job: Job, batch: Batch) -> int:
    """What a block of the encoder keeps without recomputation, where a gradient passes through it."""
    stack, size, wide = job.shape.encoder, job.size, _wide(job, "visual_encoder")
    kept = 2 * wide * stack.width  # input of both norms
    kept += size * 4 * stack.width + FLOAT * stack.heads  # queries, keys, values, output
    kept += size * stack.inner  # input of the activation
    if job.encoder_is_whole:
        kept += size * (2 * stack.width + stack.inner)  # inputs of the linear layers
        kept += size * 2 * stack.width  # both branches before their scales
    kept += adapter_bytes(job, "visual_encoder")
    return batch.tiles * job.shape.positions * kept + adapter_copies(job, "visual_encoder")


def adapter_copies(job: Job, part: str) -> int:
    """Of a block's frozen weights: DoRA with dropout multiplies by a copy of its own, which autocast makes."""
    adapters = job.adapters.get(part)
    if adapters is None or not (adapters.dora and adapters.dropout and job.autocasts):
        return 0
    return sum(linear.weights for linear in _adapted(job, part)) * job.size


def adapter_bytes(job: Job, part: str) -> int:
    """What LoRA in a block keeps per token: inputs, and A's outputs.

    With dropout each adapter has an input of its own, and a mask (a byte each); so has DoRA under autocast, which casts
    it. Otherwise layers with the same input share it, and that of the attention's last one is kept already. DoRA keeps
    the outputs of the layer and of LoRA, too, for the magnitudes' gradient.
    """
    adapters, linears = job.adapters.get(part), _adapted(job, part)
    if adapters is None:
        return 0
    inputs = sum(linear.inputs * linear.active for linear in linears)
    kept = inputs * adapters.dropout + sum(linear.active for linear in linears) * job.size * adapters.rank
    if not adapters.dropout and not (adapters.dora and job.autocasts):
        others = [linear for linear in linears if not linear.name.endswith((".o_proj", ".out_proj", "attn.proj"))]
        inputs = sum({(each.name.split(".")[0], each.inputs): each.inputs * each.active for each in others}.values())
    return kept + inputs * job.size + adapters.dora * 2 * job.size * sum(each.outputs * each.active for each in linears)


def llm_input_bytes(job: Job, batch: Batch) -> int:
    """What a recomputed block of the LLM keeps: its input."""
    return batch.tokens * _wide(job, "llm") * job.shape.llm.width


def encoder_input_bytes(job: Job, batch: Batch) -> int:
    """What a recomputed block of the encoder keeps: its input."""
    return batch.tiles * job.shape.positions * _wide(job, "visual_encoder") * job.shape.encoder.width


def llm_kept_bytes(job: Job, batch: Batch) -> int:
    """Of the LLM when the loss is computed: all blocks, the last norm and its output, and what the head reads."""
    block = llm_input_bytes(job, batch) if job.recompute else llm_block_bytes(job, batch)
    wide = _wide(job, "llm")
    last = batch.tokens * (FLOAT + wide * (1 + ("llm" in job.whole))) + batch.supervised * wide
    return job.shape.llm.layers * block + last * job.shape.llm.width


def encoder_kept_bytes(job: Job, batch: Batch) -> int:
    """Of the encoder when the loss is computed; nothing of blocks that no gradient passes through."""
    if job.group:
        return -(-job.encoder_blocks // job.group) * encoder_input_bytes(job, batch)
    return job.encoder_blocks * encoder_block_bytes(job, batch)


def projector_kept_bytes(job: Job, batch: Batch) -> int:
    """Of the projector: merged patches, the same normalized, and the activation's input and output.

    Recomputed it keeps the patches alone.
    """
    if not job.projector_learns:
        return 0
    if job.recompute_projector:
        return batch.tiles * job.shape.tokens_per_tile * job.shape.projector_input * job.size
    per_token = job.shape.projector_input * (1 + job.shape.projector_norm) + 2 * job.shape.llm.width
    return batch.tiles * job.shape.tokens_per_tile * per_token * job.size


def kept_bytes(job: Job, batch: Batch) -> int:
    """Of all parts when the loss is computed."""
    return llm_kept_bytes(job, batch) + encoder_kept_bytes(job, batch) + projector_kept_bytes(job, batch)


def tile_bytes(job: Job, batch: Batch) -> int:
    """Of the tiles themselves: pixels in float32, and in bfloat16 for the encoder."""
    return batch.tiles * 3 * job.shape.tile_size**2 * (FLOAT + (job.size if job.half else 0))


def encoding_bytes(job: Job, batch: Batch) -> int:
    """Of a frozen encoder at work: one block's input, normalized input, and both sides of the activation."""
    stack = job.shape.encoder
    return batch.tiles * job.shape.positions * job.size * (2 * stack.width + 2 * stack.inner)


def cast_bytes(job: Job) -> int:
    """Of the bfloat16 copies of trained weights that autocast keeps until the forward pass ends."""
    if not job.autocasts:
        return 0
    blocks = {"llm": job.shape.llm.layers * ("llm" in job.whole), "visual_encoder": 0}
    if job.encoder_is_whole:
        blocks["visual_encoder"] = job.encoder_blocks
    whole = sum(
        number * sum(linear.parameters for linear in job.stack(part).linears) for part, number in blocks.items()
    )
    return 2 * (whole + job.adapter_parameters + (job.shape.projector if "projector" in job.whole else 0))


def head_bytes(job: Job) -> int:
    """Of a trained head while the loss is computed: its gradient in float32, and autocast's copy.

    That of pairs has its gradient in the backward pass alone. Of a head with single trained rows a copy holds them.
    """
    if "llm" not in job.whole:
        return table_size(job) * job.size * job.trains_rows
    return table_size(job) * (FLOAT * (not job.pairs) + job.size * job.autocasts)


def head_backward_bytes(job: Job) -> int:
    """Of a trained head at the start of the backward pass: its gradient, and the same in the weight's dtype."""
    if "llm" not in job.whole:
        return 0
    return table_size(job) * (FLOAT + (0 if job.float_weights else job.size))


def pair_head_bytes(job: Job, batch: Batch) -> int:
    """Of the head in the backward pass of pairs, which computes the logits of a chunk again, and then its gradient."""
    while_computing = logits_bytes(job, batch) + head_bytes(replace(job, pairs=False))
    return max(while_computing, head_backward_bytes(job))


def table_size(job: Job) -> int:
    """Elements of the head, and of the embedding."""
    return job.shape.vocab_size * job.shape.llm.width


def llm_backward_bytes(job: Job, batch: Batch) -> int:
    """What comes and goes in the backward pass of one block of the LLM, beside what it keeps.

    Gradients of gate, up and their product, less what the block has already freed; adapters on the layer behind them
    take their own way through dropout, those of DoRA in float32 under autocast.
    """
    inner = job.shape.llm.inner
    if any(linear.inputs == inner for linear in _adapted(job, "llm")):
        per_token = 11 * inner if job.autocasts and job.adapters["llm"].dora else 3 * inner
    else:
        per_token = job.size * inner * (2 if "llm" in job.whole else 3)
    return batch.tokens * per_token + _rebuilt_bytes(job)


def _rebuilt_bytes(job: Job) -> int:
    """Weights of one linear layer of the LLM as they are computed with: unpacked, and DoRA's sums with B times A."""
    largest = max(linear.inputs * linear.outputs for linear in job.shape.llm.linears)
    adapters = job.adapters.get("llm")
    return largest * job.size * (("llm" in job.quantized) + 4 * (adapters is not None and adapters.dora))


def encoder_backward_bytes(job: Job, batch: Batch) -> int:
    """What comes and goes in the backward pass of one block of the encoder, beside what it keeps."""
    return batch.tiles * job.shape.positions * job.size * (job.shape.encoder.inner + 2 * job.shape.encoder.width)


def _wide(job: Job, part: str) -> int:
    is_whole = part in job.whole or (part == "visual_encoder" and job.encoder_is_whole)
    return FLOAT if job.autocasts and is_whole else job.size


def _adapted(job: Job, part: str) -> list[Linear]:
    return job.stack(part).matching(job.adapters[part].targets) if part in job.adapters else []
