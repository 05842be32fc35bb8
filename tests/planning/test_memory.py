"""Sums by part, and against what the real classes hold on fake tensors."""

import copy
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.bench_memory_plan import LiveBytes, as_on_a_gpu, measure, planned
from xtuner_plugins.models import losses
from xtuner_plugins.models.loss_head import LossHead
from xtuner_plugins.planning import activations as act
from xtuner_plugins.planning.job import Adapters, Batch, Strategy
from xtuner_plugins.planning.memory import FRAGMENTATION, GIB, PACKED, packed_bytes, plan_memory
from xtuner_plugins.planning.plan import Model, job_of, model_of_base, plan_config
from xtuner_plugins.planning.published import BASES, meta_model
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.planning.strategies import from_deepspeed, plain
from xtuner_plugins.settings import read_config, read_deepspeed

LORA = dict(r=64, lora_alpha=128, lora_dropout=0.05)
CHOICES = {
    "projector": {},
    "lora": {"llm_lora": LORA},
    "lora without dropout": {"llm_lora": {**LORA, "lora_dropout": 0.0}},
    "full": {"freeze_llm": False},
    "encoder": {"freeze_visual_encoder": False},
    "encoder keeps": {"freeze_visual_encoder": False, "visual_encoder_checkpointing": False},
    "last blocks": {"visual_encoder_last_layers": 4},
    "dora": {"llm_lora": {**LORA, "use_dora": True}},
    "dora without dropout": {"llm_lora": {**LORA, "use_dora": True, "lora_dropout": 0.0}},
}
FOUR_BITS = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
BITSANDBYTES = {
    "qlora": {"llm_lora": LORA, "llm_quantization": FOUR_BITS},
    "both parts in 4 bits": {"llm_quantization": FOUR_BITS, "visual_encoder_quantization": FOUR_BITS},
    "AdamW8bit": {"freeze_llm": False},
}


def compare(base, choice, holding, batch, recompute, accumulation=1):
    """name of the term -> (planned, measured) bytes."""
    ours = {"base": "x", "gradient_checkpointing": recompute, **CHOICES[choice]}
    settings = {"model": ours, "optim_wrapper": {"accumulative_counts": accumulation}}
    job = job_of(settings, model_of_base(BASES[base]), (batch,))
    plan = planned(job, holding)
    found = measure(meta_model(BASES[base]).config, ours, batch, holding, accumulation)
    return {term: (getattr(plan, term), getattr(found, term)) for term in ("weights", "kept", "peak", "step")}


# The arithmetic leaves out what is smaller than a hundredth (biases, positions, rotations), and takes the largest
# moment of a block's backward pass from its largest tensors: 10 % is what a plan promises.
@pytest.mark.parametrize("choice, recompute", [("lora", True), ("full", False), ("encoder", True)])
def test_the_plan_is_what_fake_tensors_take(choice, recompute):
    terms = compare("InternVL2_5-1B", choice, "plain", Batch(1024, 2, 512), recompute)
    for term, (expected, found) in terms.items():
        assert expected == pytest.approx(found, rel=0.1), term
    assert terms["weights"][0] == pytest.approx(terms["weights"][1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "holding, choice",
    [("plain", choice) for choice in ("lora", "full", "last blocks", "dora")]
    + [("float16", "lora"), ("bf16", "full"), ("bf16", "encoder")],
)
def test_at_true_size_and_length(choice, holding):
    for recompute in (True, False):
        terms = compare("InternViT-300M-Qwen2.5-1.5B", choice, holding, Batch(4096, 13, 768), recompute, 2)
        for term in ("weights", "kept", "peak", *(["step"] if holding != "bf16" else [])):
            expected, found = terms[term]
            assert expected == pytest.approx(found, rel=0.1), (term, recompute)


@pytest.mark.slow
@pytest.mark.parametrize("choice", BITSANDBYTES)
def test_what_bitsandbytes_holds(choice):
    """On real tensors: four blocks of InternVL2.5-1B's width and a small vocabulary."""
    config = copy.deepcopy(meta_model(BASES["InternVL2_5-1B"]).config)
    for part in (config.vision_config, config.llm_config):
        part.num_hidden_layers = 4
    config.llm_config.layer_types, config.llm_config.vocab_size = ["full_attention"] * 4, 2048
    vision, llm = config.vision_config.to_dict(), config.llm_config.to_dict()
    model = Model("small", shape_of(vision, llm, tile_size=448, downsample_ratio=0.5), vision, llm)
    batch, name = Batch(1024, 2, 512), choice if choice == "AdamW8bit" else "AdamW"
    for recompute in (True, False):
        ours = {"base": "x", "gradient_checkpointing": recompute, **BITSANDBYTES[choice]}
        job = job_of({"model": ours, "optim_wrapper": {"optimizer": {"type": name}}}, model, (batch,))
        plan, found = planned(job, "plain"), measure(config, ours, batch, "plain", optimizer=name)
        for term in ("weights", "kept", "peak", "step"):
            assert getattr(plan, term) == pytest.approx(getattr(found, term), rel=0.1), (term, recompute)


def test_parts_add_up(warm_up):
    plan = plan_memory(warm_up, plain(1))
    assert plan.total == sum(plan.parts.values())
    assert plan.parts["frozen weights"] == 2 * warm_up.frozen
    assert plan.parts["trained weights"] == 4 * warm_up.trained and plan.parts["optimizer"] == 8 * warm_up.trained
    assert plan.parts["fragmentation"] == int(FRAGMENTATION * max(plan.moments.values()))
    assert plan.moments[plan.moment] == max(plan.moments.values())


def test_moments_in_eight_bits_are_for_runs_without_zero(warm_up):
    job = replace(warm_up, moments=2.03125)
    assert plan_memory(job, plain(1)).parts["optimizer"] == int(2.03125 * warm_up.trained)
    zero = Strategy("x", 8, 2)
    assert plan_memory(job, zero).parts["optimizer"] == plan_memory(warm_up, zero).parts["optimizer"]


def test_ddp_has_buckets_and_no_shards(warm_up):
    one, eight = plan_memory(warm_up, plain(1)), plan_memory(warm_up, plain(8))
    assert eight.parts["buffers"] - one.parts["buffers"] == 4 * warm_up.trained
    assert eight.parts["optimizer"] == one.parts["optimizer"]


def test_each_stage_shards_more(warm_up):
    job = replace(warm_up, whole=frozenset({"llm", "projector"}))
    for stage, (weights, gradients) in {1: (1, 1), 2: (1, 8), 3: (8, 8)}.items():
        plan = plan_memory(job, Strategy("x", 8, stage))
        assert plan.parts["trained weights"] == -(-2 * job.trained // weights)
        assert plan.parts["master weights"] == -(-4 * job.trained // 8)
        assert plan.parts["optimizer"] == -(-8 * job.trained // 8)
        assert plan.moments["step"] >= -(-2 * job.trained // gradients)


def test_offloading_moves_states_to_the_host(warm_up):
    plans = {
        name: plan_memory(warm_up, from_deepspeed(name, read_deepspeed(f"deepspeed_{name}"), 2))
        for name in ("zero2", "zero2_offload", "zero3_offload")
    }
    assert plans["zero2"].host == 0 < plans["zero2_offload"].host < plans["zero3_offload"].host
    assert "optimizer" in plans["zero2"].parts and plans["zero2_offload"].parts["optimizer"] == 0
    assert plans["zero3_offload"].parts["frozen weights"] == 0


def test_the_reference_is_a_frozen_copy_of_what_trains_whole(warm_up):
    """In the dtype of computing, whole on each GPU; adapters are switched off, and precomputed values need no copy."""
    whole = replace(warm_up, whole=frozenset({"llm", "projector"}), pairs=True, reference=True)
    lora = replace(warm_up, whole=frozenset(), adapters={"llm": Adapters(4, ["q_proj"], False)}, pairs=True)
    for strategy in (plain(1), plain(8), Strategy("x", 8, 2)):
        held, without = (plan_memory(job, strategy) for job in (whole, replace(whole, reference=False)))
        assert held.parts["reference"] == 2 * whole.trained == held.measurable - without.measurable
        assert "reference" not in without.parts
        assert "reference" not in plan_memory(replace(lora, reference=True), strategy).parts
    both = replace(lora, whole=frozenset({"projector"}), reference=True, half=False)
    assert plan_memory(both, plain(1)).parts["reference"] == 4 * warm_up.trained


@pytest.mark.parametrize("holds_float, is_trained", [(True, False), (True, True), (False, True)])
def test_the_head_of_pairs_takes_what_fake_tensors_take(warm_up, holds_float, is_trained):
    batch, width, words = Batch(4000, 0, 4000), 896, 151_674
    shape = replace(warm_up.shape, vocab_size=words, llm=replace(warm_up.shape.llm, width=width))
    job = replace(warm_up, shape=shape, pairs=True, float_weights=holds_float)
    job = replace(job, whole=frozenset({"llm"} if is_trained else ()))
    live = LiveBytes()
    with FakeTensorMode(), as_on_a_gpu(), torch.autocast("cpu", torch.bfloat16, enabled=holds_float):
        dtype = torch.float32 if holds_float and is_trained else torch.bfloat16
        head = torch.nn.Linear(width, words, bias=False, dtype=dtype).requires_grad_(is_trained)
        LossHead.take_over(head)
        hidden = torch.zeros(batch.supervised, width, dtype=torch.bfloat16, requires_grad=True)
        targets = torch.zeros(batch.supervised, dtype=torch.int64)
        for tensor in (head.weight, hidden, targets):
            live.add(tensor)
        before = live.now
        with live:
            total = losses.token_log_probs(hidden, targets, head).sum()
            live.restart()
            total.backward()
    assert act.pair_head_bytes(job, batch) == pytest.approx(live.peak - before, rel=0.1)


def test_accumulated_gradients_are_there_from_the_start(warm_up):
    job = replace(warm_up, whole=frozenset({"llm", "projector"}))
    once, twice = (plan_memory(replace(job, accumulation=n), plain(1)) for n in (1, 2))
    assert twice.moments["loss"] - once.moments["loss"] == 4 * job.trained


def test_zero_1_holds_its_sums_from_the_start(warm_up):
    """The float32 sums of all gradients, even of one micro-batch, and beside them one that is on its way."""
    job = replace(warm_up, whole=frozenset({"llm", "projector"}))
    zero_1 = from_deepspeed("zero1", read_deepspeed("deepspeed_zero1"), 8)
    once, twice = (plan_memory(replace(job, accumulation=n), zero_1) for n in (1, 2))
    assert once == twice and once.moment == "backward"
    last = job.size * act.table_size(job)  # of the embedding, until it is in its sum
    assert once.parts["gradients"] == 4 * job.trained + last


def test_packed_weights_take_what_bitsandbytes_takes():
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(1024, 4096, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    state = layer.weight.quant_state
    found = layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert found == pytest.approx(PACKED * 1024 * 4096, rel=1e-3) and layer.weight.dtype == torch.uint8


def test_the_largest_batch_counts(warm_up):
    small, large = Batch(10, 1, 4), Batch(10**6, 0, 10)
    plan = plan_memory(replace(warm_up, batches=(small, large)), plain(1))
    assert plan == plan_memory(replace(warm_up, batches=(large,)), plain(1))


def test_the_recipe_of_the_readme_fits_one_gpu():
    assert plan_config(read_config("finetune_lora")._to_lazy_dict(), plain(1)).memory.total < 24 * GIB


@pytest.mark.parametrize("part", ["llm", "visual_encoder"])
def test_packed_parts_by_hand(warm_up, part):
    names = [linear.name for linear in warm_up.stack(part).linears]
    weights = 2 * sum(linear.weights for linear in warm_up.stack(part).linears)
    assert packed_bytes(replace(warm_up, quantized={part: names})) == pytest.approx(weights * PACKED, rel=0.01)
