"""Terms by hand on the small shape; `tests/planning/test_memory.py` compares their sums with real classes."""

from dataclasses import replace

from xtuner_plugins.planning import activations as act
from xtuner_plugins.planning.job import Adapters, Batch
from xtuner_plugins.ranges import CHUNK_LOGITS, SOFTMAX_LOGITS

TOKENS = 10


def test_a_frozen_block_by_hand(warm_up):
    # float32 inputs of two norms; queries, output, keys, values; gate, SiLU, up; the softmax's denominators
    per_token = 2 * 4 * 16 + 2 * (16 + 16 + 8 + 8) + 2 * 3 * 64 + 4 * 4
    assert act.llm_block_bytes(warm_up, warm_up.batches[0]) == TOKENS * per_token


def test_recomputation_keeps_inputs_of_blocks_alone(warm_up):
    batch = warm_up.batches[0]
    kept = act.llm_kept_bytes(warm_up, batch)
    last = TOKENS * (4 + 2) * 16 + 4 * 2 * 16
    assert kept == 2 * TOKENS * 2 * 16 + last
    without = act.llm_kept_bytes(replace(warm_up, recompute=False), batch)
    assert without == 2 * act.llm_block_bytes(warm_up, batch) + last


def test_a_frozen_encoder_keeps_nothing(warm_up):
    batch = warm_up.batches[0]
    assert act.encoder_kept_bytes(warm_up, batch) == 0
    job = replace(warm_up, whole=frozenset({"visual_encoder"}))
    assert act.encoder_kept_bytes(job, batch) == 2 * 1 * 5 * 4 * 8  # blocks, tiles, positions, float32, width


def test_adapters_keep_their_inputs_and_the_dropouts_masks(warm_up):
    """Without dropout q and v share their input, and that of o is kept by the block."""
    names = ["q_proj", "v_proj", "o_proj"]
    shared, own = (replace(warm_up, adapters={"llm": Adapters(4, names, dropout)}) for dropout in (False, True))
    assert act.adapter_bytes(shared, "llm") == 2 * (16 + 3 * 4)
    assert act.adapter_bytes(own, "llm") == 3 * (2 * (16 + 4) + 16)


def test_logits_come_in_chunks(warm_up):
    few, many = Batch(10, 1, 4), Batch(10**6, 1, 10**6)
    assert act.logits_bytes(warm_up, few) == 4 * 100 * (2 + 8) + 4 * 16 * 2
    many = replace(warm_up, shape=replace(warm_up.shape, vocab_size=1000)), many
    assert act.logits_bytes(*many) == CHUNK_LOGITS * 2 + SOFTMAX_LOGITS * 8 + 10**6 * 16 * 2


def test_attention_grows_with_tokens_not_with_their_square(warm_up):
    one, two = (act.attention_bytes(warm_up, Batch(n, 0, 1)) for n in (1000, 2000))
    assert two == 2 * one


def test_autocast_copies_trained_weights_alone(warm_up):
    assert act.cast_bytes(warm_up) == 2 * warm_up.shape.projector
    assert act.cast_bytes(replace(warm_up, float_weights=False)) == 0
    assert act.head_bytes(warm_up) == act.head_backward_bytes(warm_up) == 0
    whole = replace(warm_up, whole=frozenset({"llm"}))
    assert act.head_bytes(whole) == 100 * 16 * (4 + 2)
    assert act.head_bytes(replace(warm_up, trains_rows=True)) == 100 * 16 * 2
