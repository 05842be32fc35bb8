"""One optimizer step: however its samples are cut into micro-batches, the gradient is the same."""

import copy
import itertools
from functools import partial

import pytest
import torch
from mmengine.optim import ConstantLR, OptimWrapper
from torch.optim import SGD, AdamW

from tests.models.batches import LORA, build, make_batch, pack
from xtuner_plugins.engine.run.steps import NonFiniteError, Progress, progress, run_step, seed_step
from xtuner_plugins.weights.loader import load_model

NUM_LABELS = (1, 40, 2, 3, 35, 1, 5, 20)


@pytest.fixture(scope="module")
def model(toy_base):
    return build(toy_base, freeze_llm=False).train()


@pytest.fixture(scope="module")
def samples(model):
    """Eight batches of one sample: 1 to 40 labels each, so that micro-batches weigh very differently."""
    made = []
    for index, num_labels in enumerate(NUM_LABELS):
        batch = make_batch(model, tiles_of=(index % 3,), seed=index)
        batch["labels"] = torch.full_like(batch["labels"], -100)
        batch["labels"][0, -num_labels:] = batch["input_ids"][0, -num_labels:]
        made.append(batch)
    return made


def cut(batches, size, form=dict):
    """Batches of one sample as batches of so many, of equal length."""
    parts = [batches[start : start + size] for start in range(0, len(batches), size)]
    joined = [{key: torch.cat([each[key] for each in part]) for key in part[0] if key != "sources"} for part in parts]
    named = ([each["sources"][0] for each in part] for part in parts)
    return [form({**batch, "sources": sources}) for batch, sources in zip(joined, named, strict=True)]


def trained_by(model, optimizer, *batches, clip=None, warmup=1):
    """What optimizer steps log, and the trained weights after them; the learning rate warms up."""
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=clip) if isinstance(clip, float) else clip)
    lr, logged = optimizer.param_groups[0]["lr"], []
    for step, micro_batches in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / warmup)
        seed_step(7, 0, step)
        logged.append(run_step(model, wrapper, copy.deepcopy(micro_batches)))
    return logged, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def gradients(model, micro_batches, clip=None):
    """What a step of plain descent with rate 1 takes off each parameter, and what it logs."""
    changed = copy.deepcopy(model)
    (logged,), after = trained_by(changed, SGD(changed.parameters(), lr=1.0), micro_batches, clip=clip)
    return {name: p.detach() - after[name] for name, p in model.named_parameters() if name in after}, logged


def relative(left, right):
    distance = torch.sqrt(sum((left[name] - right[name]).double().square().sum() for name in left))
    return float(distance / torch.sqrt(sum(value.double().square().sum() for value in left.values())))


def test_micro_batches_give_the_gradient_of_the_whole(model, samples):
    """Padded or packed; weights of samples, too, count over the whole step."""
    whole, logged = gradients(model, cut(samples, 8))
    assert logged["supervised_tokens"] == sum(NUM_LABELS) and logged["grad_norm"] > 0
    for size, form in itertools.product((1, 2, 4, 8), (dict, pack)):
        in_parts, logged_in_parts = gradients(model, cut(samples, size, form))
        # Float32 sums in another order, and the rounding of weight - gradient. Averaged micro-batches were 25 % apart.
        assert relative(whole, in_parts) < 1e-5 and logged_in_parts == pytest.approx(logged, rel=1e-6), (size, form)
    clipped, logged_clipped = gradients(model, cut(samples, 8), clip=0.1)
    assert torch.nn.utils.get_total_norm(clipped.values()) == pytest.approx(0.1, rel=1e-3) and logged_clipped == logged
    clipped, _ = gradients(model, cut(samples, 8), clip=dict(type="value", clip_value=0.01))
    assert max(value.abs().max() for value in clipped.values()) == pytest.approx(0.01, rel=1e-3)
    weighted = [{**each, "loss_weights": torch.tensor([0.25 * n])} for n, each in enumerate(samples, 1)]
    weighted_whole, _ = gradients(model, cut(weighted, 8))
    assert relative(weighted_whole, gradients(model, weighted)[0]) < 1e-5 and relative(weighted_whole, whole) > 0.01


def test_packed_and_recomputed_steps_are_those_of_padded_ones(toy_base, samples):
    """With accumulation, dropout, clipping and warm-up. The same row of tokens draws the same dropout masks."""
    ways = []
    for form, recompute in ((dict, False), (partial(pack, padding=0), False), (dict, True)):
        model = build(toy_base, llm_lora={**LORA, "lora_dropout": 0.2}, gradient_checkpointing=recompute).train()
        batches = cut(samples, 2, form)
        adamw = AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5)
        ways.append(trained_by(model, adamw, batches, batches[::-1], batches, clip=0.1, warmup=3))
    (padded, weights), *others = ways
    assert len({step["loss"] for step in padded}) == 3
    for logged, own in others:
        for step, expected in zip(logged, padded, strict=True):
            assert step == pytest.approx(expected, rel=1e-6)
        assert relative(weights, own) < 1e-6


@pytest.mark.filterwarnings("error:Detected call")
def test_a_hundred_steps_are_those_of_the_official_model(toy_base):
    """Plain AdamW, padded batches of 1 to 3 samples with and without images, projector and LLM training."""
    model, official = build(toy_base, freeze_llm=False).train(), load_model(str(toy_base), dtype=torch.float32).train()
    official.img_context_token_id = model.img_context_token_id
    official.vision_model.requires_grad_(False).eval()
    ours, theirs = (AdamW([p for p in each.parameters() if p.requires_grad], lr=5e-5) for each in (model, official))
    ours, losses = OptimWrapper(ours), []
    scheduler = ConstantLR(ours, factor=1.0)  # warns where a step passes it by
    for step in range(100):
        tiles_of = [(2, 0, 1), (1,), (0, 3), (1, 1)][step % 4]
        batch = make_batch(model, tiles_of, length=64 + 5 * (step % 7), seed=step)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        loss = official(pixel_values=model.data_preprocessor.normalize(batch["tiles"]), **inputs).loss
        loss.backward()
        theirs.step()
        theirs.zero_grad()
        losses.append((run_step(model, ours, [batch])["loss"], loss.item()))
        scheduler.step()
    assert max(abs(ours / theirs - 1) for ours, theirs in losses) <= 1e-5
    assert sum(ours for ours, _ in losses[-20:]) < sum(ours for ours, _ in losses[:20])


def test_steps_without_a_loss_change_nothing_and_others_name_their_samples(model, samples):
    one, other = samples[:2]
    for nothing in ({"labels": torch.full_like(one["labels"], -100)}, {"loss_weights": torch.zeros(1)}):
        changes, logged = gradients(model, [{**one, **nothing}, {**other, **nothing}])
        assert logged["loss"] == 0 and not any(bool(change.any()) for change in changes.values())
    assert str(progress).startswith("loading its data, ") and str(Progress()).startswith("loading its data, ")
    poisoned = {**one, "loss_weights": torch.tensor([float("inf")]), "sources": ["bad.jsonl:7"]}
    with pytest.raises(NonFiniteError, match="the loss is (nan|inf), from the samples bad.jsonl:7$"):
        gradients(model, [other, poisoned])
    tokens = sum(each["input_ids"].numel() for each in (other, poisoned))
    assert str(progress).startswith(f"micro-batch 2 of 2, {tokens} tokens, ")
