"""Each objective against a reference written from its paper, pair by pair, in plain Python."""

import itertools
import math
from dataclasses import replace

import torch

from xtuner_plugins.models.objectives import (
    LOSSES,
    PairLogProbs,
    Settings,
    need_reference,
    preference_losses,
    rewards,
)
from xtuner_plugins.ranges import OBJECTIVES, check_objectives

MPO = {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}  # as its authors mix them

SETTINGS = Settings(beta=0.3, label_smoothing=0.1, margin=0.4, reward_mean=0.25)


def make_pairs(count=40, reference=True):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 60, (2, count), generator=generator)
    means = -torch.empty(4, count).exponential_(1.0, generator=generator) - 1e-3
    chosen, rejected = (means[side] * tokens[side] for side in (0, 1))
    others = [means[2] * tokens[0], means[3] * tokens[1]] if reference else [None, None]
    return PairLogProbs(chosen.requires_grad_(), rejected.requires_grad_(), *others, *tokens)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def expected(name, c, r, rc, rr, nc, nr, per_token=False):
    """The loss of one pair: log probabilities, those of the reference, numbers of tokens."""
    b, s, g, d = 0.3, 0.1, 0.4, 0.25
    ratio_c, ratio_r = ((c - rc) / nc, (r - rr) / nr) if per_token else (c - rc, r - rr)
    if name == "dpo":
        h = b * (ratio_c - ratio_r)
        return -(1 - s) * log_sigmoid(h) - s * log_sigmoid(-h)
    if name == "ipo":
        return ((c - rc) / nc - (r - rr) / nr - 1 / (2 * b)) ** 2
    if name == "hinge":
        return max(0.0, 1 - b * (ratio_c - ratio_r))
    if name == "bco_pair":
        return -log_sigmoid(b * ratio_c - d) - log_sigmoid(d - b * ratio_r)
    if name == "orpo":
        p_c, p_r = math.exp(c / nc), math.exp(r / nr)
        return -log_sigmoid(math.log(p_c / (1 - p_c)) - math.log(p_r / (1 - p_r)))
    if name == "simpo":
        return -log_sigmoid(b * (c / nc - r / nr) - g)
    assert name == "sft"
    return -c / nc


def test_equals_its_definition():
    for name, per_token in itertools.product(OBJECTIVES, (False, True)):
        pairs = make_pairs()
        columns = zip(*(column.tolist() for column in vars(pairs).values()), strict=True)
        wanted = torch.tensor([expected(name, *values, per_token=per_token) for values in columns])
        total, each = preference_losses(pairs, {name: 1.0}, replace(SETTINGS, per_token=per_token))
        torch.testing.assert_close(total, wanted, atol=1e-6, rtol=2e-6, msg=name)
        assert torch.equal(total.detach(), each[name])
        total.sum().backward()
        assert pairs.chosen.grad.isfinite().all(), name
        if name in ("hinge", "bco_pair", "orpo", "simpo", "sft"):  # the others have a best margin
            assert (pairs.chosen.grad <= 1e-6).all(), name
            assert name == "sft" or (pairs.rejected.grad >= -1e-6).all(), name


def test_mpo_is_its_weighted_sum():
    total, each = preference_losses(make_pairs(), MPO, SETTINGS)
    torch.testing.assert_close(total.detach(), 0.8 * each["dpo"] + 0.2 * each["bco_pair"] + 1.0 * each["sft"])
    assert not each["dpo"].requires_grad and list(each) == list(MPO) and check_objectives(MPO) == MPO
    assert tuple(LOSSES) == tuple(OBJECTIVES)
    assert {name for name in OBJECTIVES if need_reference({name: 1})} == {"dpo", "ipo", "hinge", "bco_pair"}
    assert need_reference(MPO) and not need_reference({"orpo": 1.0, "sft": 0.1})
    chosen, rejected = rewards(make_pairs(reference=False), SETTINGS)
    assert chosen.isfinite().all() and rejected.isfinite().all()


def test_orpo_stays_finite_for_sure_and_for_hopeless_answers():
    chosen = torch.tensor([0.0, -1e-30, -1e-7, -0.69, -0.7, -5.0, -100.0], requires_grad=True)
    rejected, one = -torch.ones(7), torch.ones(7)
    total, _ = preference_losses(PairLogProbs(chosen, rejected, None, None, one, one), {"orpo": 1.0}, SETTINGS)
    total.sum().backward()
    assert total.isfinite().all() and chosen.grad.isfinite().all()
