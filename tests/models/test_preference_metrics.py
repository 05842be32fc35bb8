"""Sums over pairs, the means of a step, and what is remembered between steps."""

import copy

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from xtuner_plugins.models.objectives import PairLogProbs, Settings
from xtuner_plugins.models.preference_metrics import ENOUGH, FADE, FIGURES, means_of_step, reward_mean, sums_of_pairs


@pytest.fixture(autouse=True)
def _own_hub():
    MessageHub.get_current_instance().runtime_info.clear()


def make_pairs(count, slope=0.0, seed=0):
    """Pairs whose rewards have a part that goes along with their length."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = torch.randint(2, 40, (2, count), generator=generator)
    noise = torch.randn(2, count, generator=generator)
    ratios = slope * torch.stack([chosen, rejected]) + noise
    zeros = torch.zeros(count)
    return PairLogProbs(ratios[0], ratios[1], zeros, zeros, chosen, rejected)


def sums(pairs, counts=None):
    counts = torch.ones_like(pairs.chosen, dtype=torch.bool) if counts is None else counts
    losses = {"dpo": torch.arange(len(counts)).float()}
    found = sums_of_pairs(pairs, Settings(beta=0.5), losses, counts, torch.full((len(counts),), 0.25))
    return dict(zip((*FIGURES, "loss_dpo"), found.tolist(), strict=True))


def test_means_are_those_of_the_pairs_that_count():
    pairs = make_pairs(6)
    counts = torch.tensor([True] * 5 + [False])
    means = means_of_step(sums(pairs, counts))
    margin = 0.5 * (pairs.chosen - pairs.rejected)[:5]
    assert means["pairs"] == 5 and means["loss_dpo"] == 2 and means["kl"] == 0.25
    assert means["margin"] == pytest.approx(margin.mean().item(), abs=1e-6)
    assert means["accuracy"] == pytest.approx((margin > 0).float().mean().item())
    assert means["tokens_chosen"] == pytest.approx(pairs.chosen_tokens[:5].float().mean().item())
    assert means_of_step(dict.fromkeys((*FIGURES, "loss_dpo"), 0.0)) == {}


def test_the_correlation_of_margin_and_length_fades():
    for slope, least, most in ((1.0, 0.9, 1), (-1.0, -1, -0.9), (0.0, -0.3, 0.3)):
        MessageHub.get_current_instance().runtime_info.clear()
        pairs = make_pairs(ENOUGH, slope)
        found = means_of_step(sums(pairs))["length_correlation"]
        margin, gap = pairs.chosen - pairs.rejected, pairs.chosen_tokens - pairs.rejected_tokens
        assert found == pytest.approx(np.corrcoef(margin.numpy(), gap.numpy())[0, 1], abs=1e-4)
        assert least < found < most
    for slope in (1.0, -1.0):
        for _ in range(int(3 / (1 - FADE))):
            last = means_of_step(sums(make_pairs(ENOUGH, slope)))
    assert last["length_correlation"] < -0.5


def test_state_goes_with_checkpoints():
    first = sums(make_pairs(20, 1.0))
    assert reward_mean() == 0
    assert "length_correlation" not in means_of_step(first)
    before = reward_mean()
    assert before == pytest.approx((first["reward_chosen"] + first["reward_rejected"]) / 2 / 20)
    hub = MessageHub.get_current_instance()
    state = copy.deepcopy(hub.state_dict())
    again = [means_of_step(sums(make_pairs(ENOUGH, 1.0, seed=1)))]
    hub.runtime_info.clear()
    hub.load_state_dict(state)
    assert reward_mean() == before
    again.append(means_of_step(sums(make_pairs(ENOUGH, 1.0, seed=1))))
    assert again[0] == again[1]
