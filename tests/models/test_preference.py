"""Both answers of a pair in one row, against rows of their own; and the figures of a step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from torch.optim import SGD
from torch.testing import assert_close

from xtuner_plugins.datasets import collate_pairs
from xtuner_plugins.datasets.preference import filler_pair
from xtuner_plugins.engine.run.steps import run_step
from xtuner_plugins.models import PreferenceModel
from xtuner_plugins.models.preference import REWARDS, reward_mean

from . import batches
from .batches import LORA, figures, make_samples

MPO = {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}  # as its authors mix them
WHOLE, ADAPTED = dict(freeze_llm=False), dict(llm_lora=LORA)


@pytest.fixture(scope="module")
def build(toy_base):
    def make(objectives=None, **settings):
        return batches.build(toy_base, PreferenceModel, objectives=objectives or {"dpo": 1.0}, **settings)

    return make


def make_pairs(model, tiles_of=(2, 0, 1)):
    """Pairs with answers of 3 to 9 tokens; no label for what a template writes behind the chosen one."""
    samples = make_samples(model, tiles_of, length=70, answers=(12, 11, 10, 9))
    for number, sample in enumerate(samples):
        chosen, rejected = 3 + number, 9 - 2 * number
        sample["branches"] = (len(sample["labels"]) - chosen - rejected, chosen, rejected)
        sample["labels"][-rejected - 1] = -100
    return samples


def run(model, samples):
    return model(**model.data_preprocessor(collate_pairs(samples)), mode="loss")


def token_log_probs(model, sample):
    """Of the labels of both answers, each in a row of its own, by the forward pass of the shipped code."""
    prompt, *answers = (part[None] for part in sample["input_ids"].split(sample["branches"]))
    pixels, found = model.data_preprocessor.normalize(sample["tiles"]) if sample["num_tiles"] else None, []
    for answer, labels in zip(answers, sample["labels"].split(sample["branches"])[1:], strict=True):
        logits = model.model(pixels, torch.cat([prompt, answer], 1)).logits[0, prompt.shape[1] - 1 : -1]
        found.append(-F.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none"))
    return found


def by_hand(model, reference, samples):
    """The loss of each pair under dpo + bco_pair / 2, and the sums of the figures that are logged."""
    losses, sums = [], torch.zeros(11)
    for sample in samples:
        own, theirs = token_log_probs(model, sample), [each.detach() for each in token_log_probs(reference, sample)]
        good, bad = (0.1 * (one.sum() - other.sum()) for one, other in zip(own, theirs, strict=True))
        dpo, bco = -F.logsigmoid(good - bad), -F.logsigmoid(good - 0.25) - F.logsigmoid(0.25 - bad)
        ratios = torch.cat(theirs) - torch.cat(own)
        kl, lengths = (ratios.exp() - 1 - ratios).mean(), map(len, own)
        losses.append(dpo + bco / 2)
        row = 1, good, bad, good > bad, *(each.sum() for each in own), *lengths, kl, dpo, bco
        sums += torch.stack([torch.as_tensor(each).detach() for each in row])
    return torch.stack(losses), sums


def test_losses_gradients_and_figures_are_those_of_two_rows_beside_the_base_as_it_was(build, toy_base, hub):
    """At first all rewards are 0; after a step the reference still answers as the untouched base.

    Adapters are switched off, and only of what trains otherwise a copy is kept. Model and reference read each prompt
    once and share the encoded images; modes stay as they were.
    """
    for settings in (WHOLE, ADAPTED):
        model, untouched = build({"dpo": 1.0, "bco_pair": 0.5}, **settings), batches.build(toy_base, **settings).eval()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert len(model._reference._copies) == sum("lora_" not in name for name in trained)
        samples, weights, tiles, read = make_pairs(model), torch.tensor([1.0, 3.0, 1.0]), [], []
        samples[1]["loss_weight"] = 3.0
        decoder = model.model.language_model.get_decoder()
        model.model.vision_model.embeddings.register_forward_pre_hook(lambda _, args, to=tiles: to.append(len(args[0])))
        decoder.norm.register_forward_pre_hook(lambda norm, args, to=read: to.append((args[0].shape[1], norm.training)))
        modes, before = [module.training for module in model.train().modules()], dict(model.named_parameters())
        first = figures(model, run(model, samples))
        assert tiles == [3] and read == [(sum(len(sample["labels"]) for sample in samples), each) for each in (0, 1)]
        assert abs(first["loss_dpo"] - 3 * 0.6931472) < 3e-6 and abs(first["reward_chosen"]) < 1e-6 > first["kl"]
        assert first["accuracy"] == 0  # no answer is above the other
        for parameter in trained.values():
            parameter.data += torch.randn(parameter.shape) * 0.02
        hub.update_info(REWARDS, (0.5, 2))  # of earlier steps
        found, (losses, sums) = run(model, samples), by_hand(model, untouched, samples)
        assert [module.training for module in model.modules()] == modes
        assert all(value is before[name] for name, value in model.named_parameters())
        assert_close(found["sample_losses"], losses.detach().double(), atol=1e-5, rtol=1e-5)
        assert_close(found["metrics"], sums, atol=1e-4, rtol=1e-5)
        total = (losses * weights).sum() / 5
        ours, theirs = (torch.autograd.grad(loss, trained.values()) for loss in (found["loss"], total))
        ours, theirs = (torch.cat([each.flatten() for each in part]).double() for part in (ours, theirs))
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()
        batch = model.data_preprocessor(collate_pairs(samples))
        expected = model.reference_log_probs(batch["row"], batch["pixel_values"])
        once = model(batch["row"]._replace(reference=expected), batch["pixel_values"])["metrics"]
        assert_close(once, found["metrics"])
        hub.runtime_info.clear()
    model = build(precomputed_reference=True, **WHOLE)
    assert not (model._reference._copies or model.reference_is_complete)
    with pytest.raises(ValueError, match="the model has changed since: leave val_data_paths empty"):
        run(model, samples)


def test_a_step_is_the_mean_over_its_pairs_however_they_are_batched(build, hub):
    """A filler has weight 0. The rewards of all steps are what bco_pair compares with, and what checkpoints hold."""
    model = build(MPO, **ADAPTED).eval()
    samples, results = make_pairs(model, (1, 0, 2, 1)), []
    samples[2]["loss_weight"] = 3.0
    for batched in ([samples], [samples[:1], samples[1:3], samples[3:]], [samples, [filler_pair(model.tile_size)]]):
        hub.runtime_info.clear()
        trained = copy.deepcopy(model)
        wrapper = OptimWrapper(SGD([p for p in trained.parameters() if p.requires_grad], lr=1.0))
        assert reward_mean() == 0 and trained.end_step(dict.fromkeys(trained.metric_names, 0.0)) == {}
        logged = run_step(trained, wrapper, [collate_pairs(batch) for batch in batched])
        means = {name: logged[name] for name in ("loss", "pairs", "margin", *model.metric_names)}
        results.append((means, trained.state_dict()))
        assert means["margin"] == means["reward_chosen"] - means["reward_rejected"] and means["pairs"] == 4
        mean = (means["reward_chosen"] + means["reward_rejected"]) / 2
        assert reward_mean() == pytest.approx(mean, abs=1e-7) and len(hub.state_dict()["runtime_info"]) == 1
    (means, whole), *others = results
    for also, parts in others:
        assert_close(dict(parts), dict(whole), atol=1e-5, rtol=1e-5)
        assert also == pytest.approx(means, rel=1e-6, abs=1e-6)


def test_what_needs_no_reference_has_none_and_unfit_settings_are_refused(build):
    assert build({"orpo": 1.0}, **WHOLE)._reference is None
    for settings, message in (
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"margin": -1}, "simpo_margin=-1"),
        ({"label_smoothing": 0.1, "objectives": {"ipo": 1.0}}, "does nothing with objectives=.*; it is for dpo$"),
        ({"per_token": True, "objectives": {"orpo": 1.0}}, "reward_per_token=True does nothing"),
        ({"precomputed_reference": True, "objectives": {"sft": 1.0}}, "precompute_reference=True does nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**settings, **ADAPTED)
