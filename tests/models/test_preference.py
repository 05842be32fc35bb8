"""Both answers of a pair in one row, against rows of their own; and the figures of a step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from torch.optim import SGD

from xtuner_plugins.datasets import collate_pairs
from xtuner_plugins.datasets.preference import filler_pair
from xtuner_plugins.engine.run.steps import run_step
from xtuner_plugins.models import PreferenceModel
from xtuner_plugins.models.objectives import PairLogProbs, Settings
from xtuner_plugins.models.preference import FIGURES, reward_mean, sums_of_pairs

from . import batches
from .batches import LORA, assert_same, make_samples

MPO = {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}  # as its authors mix them
WHOLE, ADAPTED = dict(freeze_llm=False), dict(llm_lora=LORA)


@pytest.fixture(autouse=True)
def _own_hub():
    MessageHub.get_current_instance().runtime_info.clear()


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


def two_rows(model, sample):
    """Log probabilities of both answers, each in a row of its own, by the forward pass of the shipped code."""
    prompt, *answers = (part[None] for part in sample["input_ids"].split(sample["branches"]))
    _, *labels = (part[None] for part in sample["labels"].split(sample["branches"]))
    pixels = model.data_preprocessor.normalize(sample["tiles"]) if sample["num_tiles"] else None
    found = []
    for answer, wanted in zip(answers, labels, strict=True):
        logits = model.model(pixels, torch.cat([prompt, answer], 1)).logits[0, prompt.shape[1] - 1 : -1]
        found.append(-F.cross_entropy(logits, wanted[0], reduction="sum", ignore_index=-100))
    return found


def test_log_probs_and_gradients_are_those_of_two_rows(build):
    for settings in (WHOLE, ADAPTED):
        model = build({"simpo": 1.0}, beta=1.0, margin=0.0, **settings).eval()
        samples, expected = make_pairs(model), []
        together = run(model, samples)
        for sample in samples:
            chosen, rejected = two_rows(model, sample)
            lengths = [int((part != -100).sum()) for part in sample["labels"].split(sample["branches"])[1:]]
            expected.append(-F.logsigmoid(chosen / lengths[0] - rejected / lengths[1]))
        losses = together["sample_losses"].float()
        torch.testing.assert_close(losses, torch.stack(expected).detach(), atol=1e-5, rtol=1e-5)
        trained = [p for p in model.parameters() if p.requires_grad]
        ours, theirs = (torch.autograd.grad(loss, trained) for loss in (together["loss"], torch.stack(expected).mean()))
        distance = sum((one - other).double().square().sum() for one, other in zip(ours, theirs, strict=True)) ** 0.5
        assert distance < 1e-5 * sum(value.double().square().sum() for value in theirs) ** 0.5


def test_the_reference_is_the_base_as_it_was(build, toy_base):
    """At first all rewards are 0; after a step the reference still answers as the untouched base.

    Adapters are switched off, and only of what trains otherwise a copy is kept. Model and reference read each prompt
    once and share the encoded images; modes stay as they were.
    """
    assert build({"orpo": 1.0}, **WHOLE)._reference is None
    for settings, copied in ((WHOLE, ("projector", "llm")), (ADAPTED, ("projector",))):
        model = build(**settings).train()
        tensors = [tensor for name in copied for tensor in model.parts()[name].named_parameters()]
        assert len(model._reference._copies) == len([name for name, _ in tensors if "lora" not in name])
        samples, tiles, read = make_pairs(model), [], []
        decoder = model.model.language_model.get_decoder()
        model.model.vision_model.embeddings.register_forward_pre_hook(lambda _, args, to=tiles: to.append(len(args[0])))
        decoder.norm.register_forward_pre_hook(lambda norm, args, to=read: to.append((args[0].shape[1], norm.training)))
        modes, before = [module.training for module in model.modules()], dict(model.named_parameters())
        first = run(model, samples)
        assert tiles == [3] and read == [(sum(len(sample["labels"]) for sample in samples), each) for each in (0, 1)]
        figures = dict(zip(model.metric_names, first["metrics"].tolist(), strict=True))
        assert abs(first["loss"].item() - 0.6931472) < 1e-6 and abs(figures["reward_chosen"]) < 1e-6 > figures["kl"]
        assert figures["accuracy"] == 0  # no answer is above the other
        untouched = batches.build(toy_base, **settings).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape) * 0.02
        batch = model.data_preprocessor(collate_pairs(samples))
        expected = model.reference_log_probs(batch["row"], batch["pixel_values"])
        wanted = torch.stack([value for sample in samples for value in two_rows(untouched, sample)])
        sums = torch.zeros(9).index_add(0, batch["row"].owners, expected).view(3, 3)[:, 1:].flatten()
        torch.testing.assert_close(sums, wanted.detach(), atol=1e-4, rtol=1e-5)
        assert all(value is before[name] for name, value in model.named_parameters()) and not expected.requires_grad
        assert [module.training for module in model.modules()] == modes
        live = run(model, samples)["metrics"]
        moved = dict(zip(model.metric_names, live.tolist(), strict=True))
        assert moved["kl"] > 1e-5 and moved["reward_chosen"] != 0
        once = model(batch["row"]._replace(reference=expected), batch["pixel_values"])["metrics"]
        torch.testing.assert_close(once, live)
    model = build(precomputed_reference=True, **WHOLE)
    assert not (model._reference._copies or model.reference_is_complete)
    with pytest.raises(ValueError, match="the model has changed since: leave val_data_paths empty"):
        run(model, samples)


def test_a_step_is_the_mean_over_its_pairs_however_they_are_batched(build):
    model = build(MPO, **ADAPTED).eval()
    samples, results = make_pairs(model, (1, 0, 2, 1)), []
    samples[2]["loss_weight"] = 3.0
    for batched in ([samples], [samples[:1], samples[1:3], samples[3:]], [samples, [filler_pair(model.tile_size)]]):
        MessageHub.get_current_instance().runtime_info.clear()
        trained = copy.deepcopy(model)
        wrapper = OptimWrapper(SGD([p for p in trained.parameters() if p.requires_grad], lr=1.0))
        assert reward_mean() == 0
        logged = run_step(trained, wrapper, [collate_pairs(batch) for batch in batched])
        results.append((logged, trained.state_dict()))
        mean = (logged["reward_chosen"] + logged["reward_rejected"]) / 2  # which bco_pair compares with in later steps
        assert reward_mean() == pytest.approx(mean, abs=1e-7)
    (logged, whole), *others = results
    assert {"reward_chosen", "reward_rejected", "margin", "accuracy", "kl", "loss_dpo", "loss_sft"} <= logged.keys()
    for also, parts in others:
        assert_same(parts, whole, atol=1e-5, rtol=1e-5)
        assert logged["loss"] == pytest.approx(also["loss"], rel=1e-6) and logged["pairs"] == also["pairs"] == 4


def test_unfit_settings_are_refused(build):
    for settings, message in (
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"margin": -1}, "simpo_margin=-1"),
        ({"label_smoothing": 0.1, "objectives": {"ipo": 1.0}}, "does nothing with objectives=.*; it is for dpo$"),
        ({"per_token": True, "objectives": {"orpo": 1.0}}, "reward_per_token=True does nothing"),
        ({"precomputed_reference": True, "objectives": {"sft": 1.0}}, "precompute_reference=True does nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**settings, **ADAPTED)


def test_figures_are_those_of_the_pairs_that_count(build):
    """A filler has weight 0; the rewards of all steps are what bco_pair compares with."""
    chosen, rejected, tokens = torch.tensor([1.0, 3.0, 9.0]), torch.tensor([2.0, 0.0, 9.0]), torch.tensor([4, 6, 1])
    pairs = PairLogProbs(chosen, rejected, torch.zeros(3), torch.zeros(3), tokens, 2 * tokens)
    losses, counts = {"dpo": torch.tensor([1.0, 3.0, 7.0])}, torch.tensor([True, True, False])
    names, model = (*FIGURES, "loss_dpo"), build(**ADAPTED)
    sums = sums_of_pairs(pairs, Settings(beta=0.5), losses, counts, torch.full((3,), 0.25)).tolist()
    assert model.metric_names == names and model.end_step(dict.fromkeys(names, 0.0)) == {} and reward_mean() == 0
    means = dict(pairs=2, reward_chosen=1, reward_rejected=0.5, margin=0.5, accuracy=0.5, kl=0.25, loss_dpo=2)
    means |= dict(log_prob_chosen=2, log_prob_rejected=1, tokens_chosen=5, tokens_rejected=10)
    assert model.end_step(dict(zip(names, sums, strict=True))) == means and reward_mean() == 0.75
    assert len(MessageHub.get_current_instance().state_dict()["runtime_info"]) == 1  # which checkpoints hold
