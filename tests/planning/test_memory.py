"""What a strategy holds per trained weight: by hand, and in live engines on two ranks."""

from dataclasses import replace

import pytest
import torch

from benchmarks.bench_memory_plan import STATES, measure_states, small_job, states_of
from xtuner_plugins.planning import activations as act
from xtuner_plugins.planning.job import Adapters, Batch, Strategy
from xtuner_plugins.planning.memory import FRAGMENTATION, PACKED, plan_memory, under
from xtuner_plugins.planning.strategies import from_deepspeed, obstacle, plain, strategy_named
from xtuner_plugins.settings import read_deepspeed


@pytest.fixture
def whole(warm_up):
    return replace(warm_up, whole=frozenset({"llm", "projector"}))


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_live_engines_hold_what_the_plan_says(name):
    strategy, _ = states_of(name)
    plan, found = plan_memory(small_job(strategy), strategy), measure_states(name)
    passes = max(amount for moment, amount in plan.moments.items() if moment != "step")
    assert plan.moments["step"] == pytest.approx(found["step"], rel=0.01)
    assert passes == pytest.approx(found["backward"], rel=0.02)


def test_parts_add_up_and_the_largest_batch_counts(warm_up):
    plan = plan_memory(warm_up, plain(1))
    assert plan.total == sum(plan.parts.values()) and plan.fits(plan.total) and not plan.fits(plan.total - 1)
    assert plan.parts["frozen weights"] == 2 * warm_up.frozen
    assert plan.parts["trained weights"] == 4 * warm_up.trained and plan.parts["optimizer"] == 8 * warm_up.trained
    assert plan.parts["fragmentation"] == int(FRAGMENTATION * max(plan.moments.values()))
    assert plan.moments[plan.moment] == max(plan.moments.values()) and plan.host == 0
    kept = plan_memory(replace(warm_up, recompute=False), plain(1)).moments
    encoder, batch = replace(warm_up, whole=frozenset({"visual_encoder"})), warm_up.batches[0]
    more = act.llm_backward_bytes(warm_up, batch) - act.head_kept_bytes(warm_up, batch)
    assert kept["backward"] - kept["backward of the head"] == more
    passing = act.tile_bytes(encoder, batch) + act.encoder_backward_bytes(encoder, batch)
    moments = plan_memory(encoder, plain(1)).moments
    again = act.encoder_block_bytes(encoder, batch)
    assert moments["backward of the encoder"] - moments["step"] == passing + again
    large = Batch(10**6, 0, 10)
    both, alone = (replace(warm_up, batches=each) for each in ((Batch(10, 1, 4), large), (large,)))
    assert plan_memory(both, plain(1)) == plan_memory(alone, plain(1))


def test_each_strategy_by_hand(whole):
    """Bytes per trained weight: DDP's buckets; what ZeRO shards over eight ranks; one step of float32 moments alone."""
    trained, job = whole.trained, replace(whole, moments=2.0)
    one, eight = plan_memory(job, plain(1)), plan_memory(job, plain(8))
    assert eight.parts["buffers"] - one.parts["buffers"] == 4 * trained
    assert eight.parts["optimizer"] == one.parts["optimizer"] == 2 * trained
    twice = plan_memory(replace(job, accumulation=2), plain(1))
    assert twice.moments["loss"] - one.moments["loss"] == 4 * trained
    for stage, held in {1: 2 + 4 + 12 / 8, 2: 2 + 20 / 8, 3: 22 / 8}.items():
        strategy = Strategy("x", 8, stage, gradient_size=4, bucket=0)
        plan = plan_memory(job, strategy)
        frozen = 2 * whole.frozen / (8 if stage == 3 else 1)
        assert plan.moments["step"] == pytest.approx(held * trained + frozen, rel=1e-3), stage
        assert plan.parts["optimizer"] == -(-8 * trained // 8)


def test_zero_2_makes_whole_buckets_and_zero_3_gathers(warm_up):
    bucket = 2 * 10**6
    plans = {n: plan_memory(warm_up, Strategy("x", 2, n, bucket=bucket, overlap=True)) for n in (1, 2, 3)}
    assert plans[2].parts["gradients in buckets"] == 2 * 2 * bucket + warm_up.trained
    assert plans[3].parts["buffers"] == 2 * bucket and plans[1].parts["gradients in buckets"] == 0
    weights = warm_up.shape.parameters
    assert plans[3].parts["gathered weights"] == 2 * weights and plans[2].parts["gathered weights"] == 0
    # An encoder with LoRA keeps what it computes under ZeRO-3.
    job = replace(warm_up, adapters={"visual_encoder": Adapters(4, ["qkv"], False)}, float_weights=False)
    again, kept = (act.encoder_kept_bytes(under(job, Strategy("x", 2, n)), job.batches[0]) for n in (2, 3))
    assert again == 2 * 5 * 2 * 8 and kept == 2 * act.encoder_block_bytes(job, job.batches[0])


def test_the_reference_is_a_frozen_copy_of_what_trains_whole(whole):
    """In the dtype of computing, whole on each GPU; adapters are switched off, and precomputed values need no copy."""
    job = replace(whole, pairs=True, reference=True)
    lora = replace(job, whole=frozenset(), adapters={"llm": Adapters(4, ["q_proj"], False)})
    for strategy in (plain(1), plain(8), Strategy("x", 8, 2)):
        held, without = (plan_memory(each, strategy) for each in (job, replace(job, reference=False)))
        assert held.parts["reference"] == 2 * whole.trained
        assert max(held.moments.values()) - max(without.moments.values()) == 2 * whole.trained
        assert without.parts["reference"] == plan_memory(lora, strategy).parts["reference"] == 0


def test_packed_weights_take_what_bitsandbytes_takes(warm_up):
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(1024, 4096, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    state = layer.weight.quant_state
    found = layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert found == pytest.approx(PACKED * 1024 * 4096, rel=1e-3) and layer.weight.dtype == torch.uint8
    for part in ("llm", "visual_encoder"):
        job = replace(warm_up, quantized={part: [linear.name for linear in warm_up.stack(part).linears]})
        frozen = plan_memory(job, plain(1)).parts["frozen weights"]
        assert frozen == 2 * job.frozen + int(job.packed * PACKED)
        assert job.packed + job.frozen + job.trained == job.shape.parameters


def test_what_trains_and_what_keeps_its_activations(warm_up, shape):
    assert warm_up.trained == shape.projector and warm_up.trained + warm_up.frozen == shape.parameters
    adapted = replace(warm_up, adapters={"llm": Adapters(4, ["q_proj", "k_proj"], dropout=False)})
    assert adapted.adapter_parameters == 2 * 4 * ((16 + 16) + (16 + 8))
    assert adapted.trained - warm_up.trained == adapted.adapter_parameters and adapted.frozen == warm_up.frozen
    assert replace(warm_up, train_head=True).trained - warm_up.trained == 100 * 16
    assert replace(warm_up, last_layers=1).trained - warm_up.trained == shape.encoder.block
    assert (warm_up.size, replace(warm_up, half=False).size) == (2, 4)


def test_ranks_that_share_a_row_hold_parts_of_it(warm_up):
    """As a row of a quarter of the length, but for the features of all tiles, and keys that are repeated for each."""
    whole, quarter = (replace(warm_up, batches=(Batch(*each),)) for each in ((4001, 5, 3000), (1001, 2, 1001)))
    shared = replace(whole, sharing=4)
    plans = [plan_memory(each, plain(4)).moments for each in (shared, quarter)]
    assert plans[0]["loss"] == plans[1]["loss"] and plans[0]["encoding"] >= plans[1]["encoding"]
    repeated = 2 * (4 - 2) * 4 * 2 * 1001  # keys and values of two heads more, of 4 numbers in 2 bytes, per token
    assert plans[0]["backward"] - plans[1]["backward"] == repeated
    gathered = 2 * 4 * 2 * 1 * 16 * 2  # sent and got, 8 tiles (two per rank) of a token, which has 16 numbers
    assert plans[0]["end of backward"] - plans[1]["end of backward"] == repeated + gathered
    for gpus, sharing in ((6, 4), (8, 8)):  # the LLM has four heads
        assert "must divide" in obstacle(replace(whole, sharing=sharing), plain(gpus))


def test_offloading_moves_states_and_inputs_to_the_host(warm_up):
    """All but one of the two blocks' inputs, of 16 numbers in 2 bytes per token; the host holds them all."""
    plans = {name: plan_memory(warm_up, strategy_named(f"deepspeed_{name}", 2)) for name in ("zero2", "zero2_offload")}
    plans["zero3"] = plan_memory(warm_up, strategy_named("deepspeed_zero3_offload", 2))
    assert plans["zero2"].host == 0 and plans["zero2_offload"].host == 8 * warm_up.trained
    assert plans["zero3"].host == 8 * warm_up.trained + warm_up.shape.parameters
    assert plans["zero2"].parts["optimizer"] > 0 == plans["zero2_offload"].parts["optimizer"]
    assert plans["zero3"].parts["frozen weights"] == 0
    on_gpu, on_host = (plan_memory(replace(warm_up, on_host=each), plain(1)) for each in (False, True))
    assert on_gpu.moments["loss"] - on_host.moments["loss"] == 10 * 16 * 2
    assert on_gpu.host == 0 and on_host.host == act.llm_kept_bytes(warm_up, warm_up.batches[0])


def test_deepspeed_files(warm_up):
    strategy = from_deepspeed("mine", {"zero_optimization": {"stage": 3, "reduce_bucket_size": 5e7}}, 2)
    assert (strategy.bucket, strategy.overlap, strategy.gradient_size) == (50_000_000, True, 2)
    shipped = strategy_named("deepspeed_zero2", 8)
    assert (shipped.stage, shipped.gpus, shipped.overlap, shipped.gradient_size) == (2, 8, True, 4)
    assert shipped.bucket == read_deepspeed("deepspeed_zero2")["zero_optimization"]["reduce_bucket_size"]
    assert strategy_named(None, 4).name == "DDP" and plain(1).name == "one process"
    with pytest.raises(ValueError, match="stage is 0; plans are made for 1, 2 and 3"):
        from_deepspeed("mine", {"zero_optimization": {"stage": 0}}, 2)
    pairs = replace(warm_up, pairs=True, reference=True)
    assert "packed weights" in obstacle(replace(warm_up, quantized={"llm": ["q_proj"]}), strategy)
    assert "precompute_reference=True" in obstacle(pairs, strategy) and obstacle(pairs, shipped) == ""
    assert obstacle(replace(pairs, whole=frozenset()), strategy) == ""
