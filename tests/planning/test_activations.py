"""The formulas beside the real classes on fake CUDA tensors, and by hand."""

from dataclasses import replace
from itertools import product

import pytest

from benchmarks.bench_memory_plan import CHOICES, HOLDINGS, compare
from xtuner_plugins.planning import activations as act
from xtuner_plugins.planning.job import Adapters, Batch

# Left out: biases, positions, rotations, the token ids. They are a larger share of models with few blocks.
TOLERANCE = 0.02
CASES = [  # base, choice, holding, whether blocks are recomputed
    ("InternVL2_5-1B", "full", "plain", False),
    ("InternVL2_5-1B", "full", "bf16", True),
    ("InternVL3_5-2B", "lora", "plain", True),
    ("InternVL2_5-8B", "qlora", "bf16", False),
    ("InternVL3-8B", "encoder lora", "plain", False),
]


def check(*case, batch, **options):
    *names, recompute = case
    for term, (expected, measured) in compare(*names, batch, recompute, **options).items():
        assert expected == pytest.approx(measured, rel=1e-3 if term == "weights" else TOLERANCE), (case, term)


def test_a_few_blocks_keep_what_the_plan_says():
    for case in CASES:
        check(*case, batch=Batch(4096, 13, 800), accumulation=2, blocks=4)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["InternVL2_5-2B", "InternVL3_5-2B", "InternVL3-38B", "LLaVA-Qwen2.5-3B"])
def test_at_true_size(base):
    for case in product(CHOICES, HOLDINGS, (True, False)):
        check(base, *case, batch=Batch(4096, 6, 800))


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
    assert act.tile_bytes(warm_up, batch) == 3 * 28**2 * (4 + 2)
    assert act.cast_bytes(warm_up, kept=True) == 2 * warm_up.shape.projector
    pairs = replace(warm_up, pairs=True)  # their logits are computed again
    assert (
        act.head_backward_bytes(pairs, batch)
        == act.logits_bytes(pairs, batch)
        > act.head_backward_bytes(warm_up, batch)
    )
