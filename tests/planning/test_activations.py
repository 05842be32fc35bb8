"""The formulas beside the real classes on fake CUDA tensors; chunks of logits and adapters by hand."""

import itertools
from dataclasses import replace

import pytest
import torch

from benchmarks.bench_memory_plan import CHOICES, HOLDINGS, compare
from benchmarks.fake_gpu import LiveBytes, fake_gpu, run_backward
from xtuner_plugins.models import losses
from xtuner_plugins.models.loss_head import LossHead
from xtuner_plugins.planning import activations as act
from xtuner_plugins.planning.job import Adapters, Batch

# Left out: biases, positions, rotations, the token ids. They are a larger share of models with few blocks.
TOLERANCE = 0.02
SHORT = dict(batch=Batch(4096, 13, 800), blocks=4)


def check(found):
    for term, (expected, measured) in found.items():
        assert expected == pytest.approx(measured, rel=TOLERANCE), term
    assert found["weights"][0] == pytest.approx(found["weights"][1], rel=1e-3)


@pytest.mark.parametrize(
    "base, choice, holding, recompute",
    [
        ("InternVL2_5-1B", "full", "plain", False),
        ("InternVL2_5-1B", "full", "bf16", True),
        ("InternVL3_5-2B", "lora", "plain", True),
        ("InternVL2_5-8B", "qlora", "bf16", False),
        ("InternVL3-8B", "encoder lora", "plain", False),
    ],
)
def test_a_few_blocks_keep_what_the_plan_says(base, choice, holding, recompute):
    check(compare(base, choice, holding, recompute=recompute, accumulation=2, **SHORT))


@pytest.mark.slow
@pytest.mark.parametrize("base", ["InternVL2_5-2B", "InternVL3_5-2B", "InternVL3-38B", "LLaVA-Qwen2.5-3B"])
def test_at_true_size(base):
    for choice, holding, recompute in itertools.product(CHOICES, HOLDINGS, (True, False)):
        check(compare(base, choice, holding, Batch(4096, 6, 800), recompute))


@pytest.mark.parametrize("holds_float, is_trained", [(True, False), (True, True)])
def test_the_head_of_pairs_takes_what_fake_tensors_take(warm_up, holds_float, is_trained):
    batch, width, words = Batch(4000, 0, 4000), 896, 151_674
    shape = replace(warm_up.shape, vocab_size=words, llm=replace(warm_up.shape.llm, width=width))
    job = replace(warm_up, shape=shape, pairs=True, float_weights=holds_float, train_head=is_trained)
    live, dtype = LiveBytes(), torch.float32 if holds_float and is_trained else torch.bfloat16
    with fake_gpu(), torch.autocast("cuda", torch.bfloat16, enabled=holds_float):
        head = torch.nn.Linear(width, words, bias=False, dtype=dtype, device="cuda").requires_grad_(is_trained)
        LossHead.take_over(head)
        hidden = torch.zeros(batch.supervised, width, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        targets = torch.zeros(batch.supervised, dtype=torch.int64, device="cuda")
        for tensor in (head.weight, hidden, targets):
            live.add(tensor)
        before = live.now
        with live:
            total = [losses.token_log_probs(hidden, targets, head).sum()]
            live.restart()
            run_backward(total)
    assert act.head_backward_bytes(job, batch) == pytest.approx(live.peak - before, rel=0.1)


def test_blocks_by_hand(warm_up):
    """Norms, attention and feed-forward part; adapters with and without dropout; 4 bits unpacked; a frozen encoder."""
    batch, names = warm_up.batches[0], ["q_proj", "v_proj", "o_proj"]
    block = act.llm_block_bytes(warm_up, batch)
    assert block == 10 * (2 * 4 * 16 + 4 * 4 + 2 * (2 * 16 + 2 * 8 + 3 * 64))
    # Without dropout q and v share their input, and that of o is kept by the block.
    shared, own = (replace(warm_up, adapters={"llm": Adapters(4, names, dropout)}) for dropout in (False, True))
    assert act.llm_block_bytes(shared, batch) - block == 10 * 2 * (16 + 3 * 4)
    assert act.llm_block_bytes(own, batch) - block == 10 * 3 * (2 * (16 + 4) + 16)
    packed = replace(warm_up, quantized={"llm": ["q_proj"]})
    assert act.llm_backward_bytes(packed, batch) == 10 * 2 * 3 * 64 + 2 * 16 * 64
    last = 10 * (4 * 16 + 2 * 4 * 2)  # input of the last norm in float32; cosine and sine
    assert act.llm_kept_bytes(warm_up, batch) == 2 * 10 * 2 * 16 + last
    block = 5 * (2 * 4 * 8 + 4 * 2 + 2 * (4 * 8 + 32))
    assert act.encoder_block_bytes(warm_up, batch) == block and act.encoder_kept_bytes(warm_up, batch) == 0
    adapted = replace(warm_up, adapters={"visual_encoder": Adapters(4, ["qkv"], dropout=True)})
    assert act.encoder_block_bytes(adapted, batch) == block + 5 * (8 + 2 * 4 + 2 * 8)
    job = replace(warm_up, whole=frozenset({"visual_encoder"}))
    assert act.encoder_kept_bytes(job, batch) == 2 * 1 * 5 * 4 * 8  # blocks, tiles, positions, float32, width
    assert act.tile_bytes(warm_up, batch) == 3 * 28**2 * (4 + 2)
    assert act.cast_bytes(warm_up, kept=True) == 2 * warm_up.shape.projector
    assert act.cast_bytes(replace(warm_up, float_weights=False), kept=False) == 0
