"""What a strategy holds: in live engines on two ranks, and by hand what these don't do."""

from dataclasses import replace

import pytest

from benchmarks.bench_memory_plan import STATES, measure_states, small_job, states_of
from xtuner_plugins.planning import activations as act
from xtuner_plugins.planning.job import FLOAT, Adapters, Batch, Strategy, from_deepspeed, plain, strategy_named
from xtuner_plugins.planning.memory import FRAGMENTATION, PACKED, plan_memory, under


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_live_engines_hold_what_the_plan_says(name):
    strategy, _ = states_of(name)
    plan, found = plan_memory(small_job(strategy), strategy), measure_states(name)
    passes = max(amount for moment, amount in plan.moments.items() if moment != "step")
    assert plan.moments["step"] == pytest.approx(found["step"], rel=0.01)
    assert passes == pytest.approx(found["backward"], rel=0.02)


def test_parts_add_up_and_the_largest_batch_counts(warm_up):
    plan, trained = plan_memory(warm_up, plain(1)), warm_up.trained
    assert plan == plan_memory(replace(warm_up, accumulation=1, pairs=False), plain(1))
    assert plan.total == sum(plan.parts.values()) and plan.fits(plan.total) and not plan.fits(plan.total - 1)
    most = max(plan.moments.values())
    held = {"frozen weights": 2 * warm_up.frozen, "trained weights": 4 * trained, "optimizer": 8 * trained}
    assert plan.parts.items() >= {**held, "fragmentation": int(FRAGMENTATION * most)}.items()
    assert most == plan.moments[plan.moment] and plan.host == 0
    # The gradient of a head that trains comes beside the sum of earlier ones, or with the last activations gone.
    once, again = (replace(warm_up, train_head=True, accumulation=each) for each in (1, 2))
    ends = [plan_memory(each, plain(1)).moments["end of backward"] for each in (once, again)]
    assert ends[1] - ends[0] == 2 * FLOAT * warm_up.shape.table
    small, large = warm_up.batches[0], Batch(10**6, 0, 10)
    both, alone = (plan_memory(replace(warm_up, batches=each), plain(1)) for each in ((small, large), (large,)))
    assert both == alone


def test_zero_2_makes_whole_buckets_and_zero_3_gathers_and_keeps_an_adapted_encoder(warm_up):
    bucket, weights = 2 * 10**6, warm_up.shape.parameters
    assert plan_memory(warm_up, plain(2)).parts["buffers"] == 4 * warm_up.trained  # DDP's
    late = plan_memory(warm_up, Strategy("x", 2, 3, bucket=bucket, prefetch=10)).parts["gradients in buckets"]
    assert late == 2 * (warm_up.trained - 10)  # a full bucket is copied when no weights are on their way ahead
    parts = [plan_memory(warm_up, Strategy("x", 2, n, bucket=bucket, overlap=True)).parts for n in (1, 2, 3)]
    assert [each["gradients in buckets"] for each in parts[:2]] == [0, 2 * 2 * bucket + warm_up.trained]
    assert [each["gathered weights"] for each in parts] == [0, 0, 2 * weights] and parts[2]["buffers"] == 2 * bucket
    job = replace(warm_up, adapters={"visual_encoder": Adapters(4, ["qkv"], False)}, float_weights=False)
    again, kept = (act.encoder_kept_bytes(under(job, Strategy("x", 2, n)), job.batches[0]) for n in (2, 3))
    assert again == 2 * 5 * 2 * 8 and kept == 2 * act.encoder_block_bytes(job, job.batches[0])


def test_packed_weights_take_what_bitsandbytes_takes(warm_up):
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(1024, 4096, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    state = layer.weight.quant_state
    found = layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert found == pytest.approx(PACKED * 1024 * 4096, rel=1e-3)
    job = replace(warm_up, quantized={"visual_encoder": ["attn.qkv"]})
    assert plan_memory(job, plain(1)).parts["frozen weights"] == 2 * job.frozen + int(2 * 8 * 24 * PACKED)


def test_ranks_that_share_a_row_hold_parts_of_it(warm_up):
    """As a row of a quarter of the length, but for the features of all tiles, and keys that are repeated for each."""
    whole, quarter = (replace(warm_up, batches=(Batch(*each),)) for each in ((4001, 5, 3000), (1001, 2, 1001)))
    shared, alone = (plan_memory(each, plain(4)).moments for each in (replace(whole, sharing=4), quarter))
    assert shared["loss"] == alone["loss"] and shared["encoding"] >= alone["encoding"]
    repeated = 2 * (4 - 2) * 4 * 2 * 1001  # keys and values of two heads more, of 4 numbers in 2 bytes, per token
    assert shared["backward"] - alone["backward"] == repeated
    gathered = 2 * 4 * 2 * 1 * 16 * 2  # sent and got, 8 tiles (two per rank) of a token, which has 16 numbers
    assert shared["end of backward"] - alone["end of backward"] == repeated + gathered


def test_offloading_moves_states_and_inputs_to_the_host(warm_up):
    """All but one of the two blocks' inputs, of 16 numbers in 2 bytes per token; the host holds them all."""
    names = ("zero2", "zero2_offload", "zero3_offload")
    plans = [plan_memory(warm_up, strategy_named(f"deepspeed_{name}", 2)) for name in names]
    trained, weights = warm_up.trained, warm_up.shape.parameters
    assert [plan.host for plan in plans] == [0, 8 * trained, 8 * trained + weights]
    assert plans[0].parts["optimizer"] > 0 == plans[1].parts["optimizer"] == plans[2].parts["frozen weights"]
    assert plans[1].moments["step"] == sum(plans[1].parts[f"{each} weights"] for each in ("frozen", "trained"))
    on_gpu, on_host = (plan_memory(replace(warm_up, on_host=each), plain(1)) for each in (False, True))
    assert on_gpu.moments["loss"] - on_host.moments["loss"] == 10 * 16 * 2
    assert on_gpu.host == 0 and on_host.host == act.llm_kept_bytes(warm_up, warm_up.batches[0])


def test_deepspeed_files():
    zero = {"stage": 3, "reduce_bucket_size": 5e7}
    assert from_deepspeed("mine", {"zero_optimization": zero}, 2) == Strategy(
        "mine", 2, 3, bucket=50_000_000, overlap=True
    )
    shipped = replace(strategy_named("deepspeed_zero2", 8), bucket=0)
    assert shipped == Strategy("deepspeed_zero2", 8, 2, bucket=0, overlap=True, gradient_size=4)
    with pytest.raises(ValueError, match="stage is 0; plans are made for 1, 2 and 3"):
        from_deepspeed("mine", {"zero_optimization": {"stage": 0}}, 2)
