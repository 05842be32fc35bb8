"""One optimizer step: however its samples are cut into micro-batches, the gradient is the same."""

import copy
import itertools
import random
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.optim import SGD, AdamW

from benchmarks.fake_gpu import fake_gpu
from tests.models.batches import LORA, make_batch, pack
from tests.models.fake_cuda import Watch
from xtuner_plugins.engine.run import steps
from xtuner_plugins.engine.run.steps import NonFiniteError, run_step, seed_step
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.models.losses import batch_weight
from xtuner_plugins.weights.loader import load_model

NUM_SAMPLES = 8


@pytest.fixture(scope="module")
def model(toy_base):
    torch.manual_seed(0)
    return VisionLanguageModel(base=str(toy_base), dtype="float32", freeze_llm=False).train()


@pytest.fixture(scope="module")
def samples(model):
    """Eight batches of one sample: 1 to 40 labels each, so that micro-batches weigh very differently."""
    made = []
    for index in range(NUM_SAMPLES):
        batch = make_batch(model, tiles_of=(index % 3,), seed=index)
        num_labels = (1, 40, 2, 3, 35, 1, 5, 20)[index]
        batch["labels"] = torch.full_like(batch["labels"], -100)
        batch["labels"][0, -num_labels:] = batch["input_ids"][0, -num_labels:]
        made.append(batch)
    return made


def joined(batches):
    """Batches of equal length as one."""
    result = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0] if key != "sources"}
    return {**result, "sources": [source for batch in batches for source in batch["sources"]]}


def gradients(model, micro_batches):
    """What a step of plain descent with rate 1 takes off each parameter, and what it logs."""
    model = copy.deepcopy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    wrapper = OptimWrapper(SGD([p for p in model.parameters() if p.requires_grad], lr=1.0))
    logged = run_step(model, wrapper, copy.deepcopy(micro_batches))
    after = dict(model.named_parameters())
    return {name: before[name] - after[name].detach() for name in before}, logged


def relative(left, right):
    distance = torch.sqrt(sum((left[name] - right[name]).double().square().sum() for name in left))
    return float(distance / torch.sqrt(sum(value.double().square().sum() for value in left.values())))


def test_micro_batches_give_the_gradient_of_the_whole(model, samples):
    """Padded or packed; weights of samples, too, count over the whole step."""
    whole, logged = gradients(model, [joined(samples)])
    assert logged["supervised_tokens"] == 107 and logged["grad_norm"] > 0
    for size, form in itertools.product((1, 2, 4, 8), (dict, pack)):
        cut = [form(joined(samples[start : start + size])) for start in range(0, NUM_SAMPLES, size)]
        in_parts, logged_in_parts = gradients(model, cut)
        # Float32 sums in another order, and the rounding of weight - gradient. Averaged micro-batches were 25 % apart.
        assert relative(whole, in_parts) < 1e-5 and logged_in_parts == pytest.approx(logged, rel=1e-6), (size, form)
    weighted = copy.deepcopy(samples)
    for index, batch in enumerate(weighted):
        batch["loss_weights"] = torch.tensor([0.25 * (index + 1)])
    weighted_whole, _ = gradients(model, [joined(weighted)])
    assert relative(weighted_whole, gradients(model, weighted)[0]) < 1e-5 and relative(weighted_whole, whole) > 0.01


def trained(model, steps, warmup=3, lr=5e-5, clip=1.0):
    """What optimizer steps with AdamW, clipping and a warm-up log, and the trained weights."""
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=clip))
    logged = []
    for step, micro_batches in enumerate(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / warmup)
        seed_step(7, 0, step)
        logged.append(run_step(model, wrapper, copy.deepcopy(micro_batches)))
    return logged, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def test_packed_and_recomputed_steps_are_those_of_padded_ones(toy_base, samples):
    """With accumulation, dropout, clipping and warm-up. The same row of tokens draws the same dropout masks."""
    lora = {**LORA, "lora_dropout": 0.2}
    cut = [joined(samples[start : start + 2]) for start in range(0, NUM_SAMPLES, 2)]
    ways = {}
    for name, form, recompute in (
        ("padded", dict, False),
        ("packed", partial(pack, padding=0), False),
        ("recomputed", dict, True),
    ):
        torch.manual_seed(0)
        model = VisionLanguageModel(
            base=str(toy_base), dtype="float32", llm_lora=lora, gradient_checkpointing=recompute
        ).train()
        batches = [form(batch) for batch in cut]
        ways[name] = trained(model, [batches, batches[::-1], batches], clip=0.1)
    assert len({step["loss"] for step in ways["padded"][0]}) == 3
    for other in ("packed", "recomputed"):
        for step, expected in zip(ways[other][0], ways["padded"][0], strict=True):
            assert step == pytest.approx(expected, rel=1e-6), other
        assert relative(ways["padded"][1], ways[other][1]) < 1e-6, other


def test_a_hundred_steps_are_those_of_the_official_model(toy_base):
    """Plain AdamW, padded batches of 1 to 3 samples with and without images, projector and LLM training."""
    model = VisionLanguageModel(base=str(toy_base), dtype="float32", freeze_llm=False).train()
    official = load_model(str(toy_base), dtype=torch.float32).train()
    official.img_context_token_id = model.img_context_token_id
    official.vision_model.requires_grad_(False).eval()
    ours = OptimWrapper(AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5))
    theirs = AdamW([p for p in official.parameters() if p.requires_grad], lr=5e-5)
    losses = []
    for step in range(100):
        tiles_of = [(2, 0, 1), (1,), (0, 3), (1, 1)][step % 4]
        batch = make_batch(model, tiles_of, length=64 + 5 * (step % 7), seed=step)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        loss = official(pixel_values=model.data_preprocessor.normalize(batch["tiles"]), **inputs).loss
        loss.backward()
        theirs.step()
        theirs.zero_grad()
        losses.append((run_step(model, ours, [batch])["loss"], loss.item()))
    assert max(abs(ours / theirs - 1) for ours, theirs in losses) <= 1e-5
    assert sum(ours for ours, _ in losses[-20:]) < sum(ours for ours, _ in losses[:20])


def test_a_step_without_labels_or_weight_changes_nothing(model, samples):
    for key, value in (("labels", -100), ("loss_weights", 0)):
        batches = [{**batch, "loss_weights": torch.ones(1)} for batch in copy.deepcopy(samples[:2])]
        for batch in batches:
            batch[key].fill_(value)
        changes, logged = gradients(model, batches)
        assert logged["loss"] == 0 and not any(bool(change.any()) for change in changes.values())


def test_the_weight_of_a_pack_is_that_of_its_labels():
    labels = torch.tensor([[-100, 1, 1, -100, 1, -100, -100]])
    pack = {"labels": labels, "cu_seqlens": torch.tensor([0, 3, 5], dtype=torch.int32)}
    assert batch_weight(pack) == 3
    assert batch_weight({**pack, "loss_weights": torch.tensor([0.5, 2.0])}) == 3.0 - 1.0 + 1.0


def test_a_loss_that_is_not_finite_names_its_samples(model, samples):
    poisoned = copy.deepcopy(samples[:3])
    poisoned[1]["loss_weights"] = torch.tensor([float("inf")])
    poisoned[1]["sources"] = ["bad.jsonl:7"]
    with pytest.raises(NonFiniteError):
        gradients(model, poisoned)
    many = NonFiniteError("the loss is nan", [f"a.jsonl:{row}" for row in range(1, 12)])
    assert str(many).endswith("a.jsonl:8 and 3 more")


def test_what_is_random_in_a_step_depends_on_seed_rank_and_step_alone():
    def draws(*arguments):
        seed_step(*arguments)
        return random.random(), np.random.rand(), float(torch.rand(()))

    arguments = ((7, 0, 3), (8, 0, 3), (7, 1, 3), (7, 0, 4))
    assert len({draws(*each) for each in (*arguments, *arguments)}) == 4


def test_nothing_waits_for_the_device_before_the_sums_of_a_step(monkeypatch):
    """On fake CUDA tensors: the weight of the step is copied from pinned memory."""
    network = torch.nn.Module()
    network.metric_names = ()
    with fake_gpu(), Watch() as watch:
        network.weight = torch.nn.Parameter(torch.empty(1, device="cuda"))
        monkeypatch.setattr(steps, "batch_weight", lambda batch: 3.0)
        monkeypatch.setattr(steps, "_accumulate", lambda *args: torch.zeros(1, 3, device="cuda"))
        with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):  # the sums are read
            run_step(network, OptimWrapper(SGD([network.weight], lr=1.0)), [{}])
    assert watch.waits == [] and watch.calls["aten::_pin_memory"] == 1
