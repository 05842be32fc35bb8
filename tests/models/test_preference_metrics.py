"""Sums over pairs, the means of a step, and what is remembered between steps."""

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from xtuner_plugins.models.objectives import PairLogProbs, Settings
from xtuner_plugins.models.preference_metrics import ENOUGH, FADE, FIGURES, means_of_step, reward_mean, sums_of_pairs


@pytest.fixture(autouse=True)
def hub():
    hub = MessageHub.get_current_instance()
    hub.runtime_info.clear()
    return hub


def make_pairs(count, slope=0.0):
    """Pairs whose rewards have a part that goes along with their length."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randint(2, 40, (2, count), generator=generator)
    ratios = slope * torch.stack([chosen, rejected]) + torch.randn(2, count, generator=generator)
    return PairLogProbs(*ratios, torch.zeros(count), torch.zeros(count), chosen, rejected)


def sums(pairs, num_fillers=0):
    counts = torch.arange(len(pairs.chosen)) < len(pairs.chosen) - num_fillers
    losses = {"dpo": torch.arange(len(counts)).float()}
    found = sums_of_pairs(pairs, Settings(beta=0.5), losses, counts, torch.full((len(counts),), 0.25))
    return dict(zip((*FIGURES, "loss_dpo"), found.tolist(), strict=True))


def test_means_are_those_of_the_pairs_that_count():
    pairs = make_pairs(6)
    assert means_of_step(dict.fromkeys((*FIGURES, "loss_dpo"), 0.0)) == {} and reward_mean() == 0
    means = means_of_step(sums(pairs, num_fillers=1))
    margin = 0.5 * (pairs.chosen - pairs.rejected)[:5]
    assert means["pairs"] == 5 and means["loss_dpo"] == 2 and means["kl"] == 0.25
    assert means["margin"] == pytest.approx(margin.mean().item(), abs=1e-6)
    assert means["accuracy"] == pytest.approx((margin > 0).float().mean().item())
    assert means["tokens_chosen"] == pytest.approx(pairs.chosen_tokens[:5].float().mean().item())
    assert "length_correlation" not in means
    assert reward_mean() == pytest.approx(0.25 * (pairs.chosen + pairs.rejected)[:5].mean().item())


def test_the_correlation_of_margin_and_length_fades(hub):
    """What is remembered is in the state that checkpoints keep."""
    for slope, least, most in ((1.0, 0.9, 1), (-1.0, -1, -0.9), (0.0, -0.3, 0.3)):
        hub.runtime_info.clear()
        pairs = make_pairs(ENOUGH, slope)
        found = means_of_step(sums(pairs))["length_correlation"]
        margin, gap = pairs.chosen - pairs.rejected, pairs.chosen_tokens - pairs.rejected_tokens
        assert found == pytest.approx(np.corrcoef(margin.numpy(), gap.numpy())[0, 1], abs=1e-4)
        assert least < found < most and len(hub.state_dict()["runtime_info"]) == 2
    for slope in (1.0, -1.0):
        for _ in range(int(3 / (1 - FADE))):
            last = means_of_step(sums(make_pairs(ENOUGH, slope)))
    assert last["length_correlation"] < -0.5
