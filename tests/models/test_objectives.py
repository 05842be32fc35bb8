"""Each objective against a reference written from its paper, pair by pair, in plain Python; and beside TRL's own."""

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.testing import assert_close

from xtuner_plugins.models.objectives import PairLogProbs, Settings, preference_losses
from xtuner_plugins.ranges import OBJECTIVES

MPO = {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}  # as its authors mix them
SETTINGS = Settings(beta=0.3, label_smoothing=0.1, margin=0.4, reward_mean=0.25)
TRL = "1.16.0"
OURS_TO_TRL = {"dpo": "sigmoid", "ipo": "ipo", "hinge": "hinge", "bco_pair": "bco_pair", "sft": "sft"}


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def log_odds(log_p):
    return math.log(math.exp(log_p) / (1 - math.exp(log_p)))


def expected(c, r, rc, rr, nc, nr, per_token):
    """The loss of one pair by objective: log probabilities, those of the reference, numbers of tokens."""
    b, s, g, d = 0.3, 0.1, 0.4, 0.25
    ratio_c, ratio_r = ((c - rc) / nc, (r - rr) / nr) if per_token else (c - rc, r - rr)
    h = b * (ratio_c - ratio_r)
    return {
        "dpo": -(1 - s) * log_sigmoid(h) - s * log_sigmoid(-h),
        "ipo": ((c - rc) / nc - (r - rr) / nr - 1 / (2 * b)) ** 2,
        "hinge": max(0.0, 1 - h),
        "bco_pair": -log_sigmoid(b * ratio_c - d) - log_sigmoid(d - b * ratio_r),
        "orpo": -log_sigmoid(log_odds(c / nc) - log_odds(r / nr)),
        "simpo": -log_sigmoid(b * (c / nc - r / nr) - g),
        "sft": -c / nc,
    }


def test_equals_its_definition():
    """Each objective, and a weighted sum of them as MPO is; orpo stays finite for sure and for hopeless answers."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 60, (2, 40), generator=generator)
    log_probs = (-torch.empty(4, 40).exponential_(1.0, generator=generator) - 1e-3) * tokens.repeat(2, 1)
    pairs = PairLogProbs(log_probs[0].requires_grad_(), *log_probs[1:], *tokens)
    for per_token in (False, True):
        settings = replace(SETTINGS, per_token=per_token)
        columns = zip(*(column.tolist() for column in vars(pairs).values()), strict=True)
        rows = [expected(*values, per_token) for values in columns]
        wanted = {name: torch.tensor([row[name] for row in rows]) for name in OBJECTIVES}
        _, each = preference_losses(pairs, dict.fromkeys(OBJECTIVES, 1.0), settings)
        assert_close(each, wanted, atol=1e-6, rtol=2e-6)
        total, some = preference_losses(pairs, MPO, settings)
        assert_close(total.detach(), sum(weight * wanted[name] for name, weight in MPO.items()))
        assert list(some) == list(MPO) and total.requires_grad and not some["dpo"].requires_grad
    chosen = torch.tensor([0.0, -1e-30, -1e-7, -0.69, -0.7, -5.0, -100.0], requires_grad=True)
    rejected, one = -torch.ones(7), torch.ones(7)
    total, _ = preference_losses(PairLogProbs(chosen, rejected, None, None, one, one), {"orpo": 1.0}, SETTINGS)
    total.sum().backward()
    assert total.isfinite().all() and chosen.grad.isfinite().all()


def trl_loss(trl, name, own, reference, beta):
    """The loss of TRL's DPO trainer for one pair, which gets log probabilities from a model that only says them."""
    lengths = [len(answer) for answer in own]
    mask = torch.tensor([[0, *[1] * length, *[0] * (max(lengths) - length)] for length in lengths])
    said = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
    zeros = torch.zeros_like(said)
    said = SimpleNamespace(log_probs=said, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    trainer = mock.MagicMock(loss_types=[name], loss_weights=[1.0], beta=beta, label_smoothing=0.0)
    trainer.configure_mock(aux_loss_enabled=False, ld_alpha=None, use_weighting=False, _tp_size=1)
    trainer.configure_mock(f_divergence_type="reverse_kl", **{"accelerator.device": "cpu"})
    trainer.accelerator.gather_for_metrics.side_effect = lambda value: value
    inputs = {"input_ids": 0 * mask, "attention_mask": mask**0, "completion_mask": mask}
    inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = (answer.sum()[None] for answer in reference)
    return trl.DPOTrainer._compute_loss(trainer, lambda **_: said, inputs, False)


@pytest.mark.release
def test_losses_are_those_of_trl(tmp_path, monkeypatch):
    """The package is fetched from the package index."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), f"trl=={TRL}"]
    subprocess.run(command, check=True, timeout=300)
    monkeypatch.syspath_prepend(tmp_path)
    import trl
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    generator = torch.Generator().manual_seed(0)
    for beta, lengths in itertools.product((0.1, 0.7, 2.0), ((5, 9), (12, 3), (7, 7))):
        own, reference = ([-3 * torch.rand(n, generator=generator) for n in lengths] for _ in range(2))
        sums = [answer.sum()[None] for answer in (*own, *reference)]
        pairs = PairLogProbs(*sums, *(torch.tensor([length]) for length in lengths))
        theirs = {name: trl_loss(trl, other, own, reference, beta) for name, other in OURS_TO_TRL.items()}
        means, accelerator = [answer.mean()[None] for answer in own], SimpleNamespace(device="cpu")
        simpo = dict(beta=beta, alpha=0.0, loss_type="simpo", simpo_gamma=0.5, label_smoothing=0.0)
        theirs["simpo"] = CPOTrainer.cpo_loss(SimpleNamespace(accelerator=accelerator, **simpo), *means)[0][0]
        odds = SimpleNamespace(beta=1.0, accelerator=accelerator)
        theirs["orpo"] = -ORPOTrainer.odds_ratio_loss(odds, *means)[0][0]
        _, ours = preference_losses(pairs, dict.fromkeys(theirs, 1.0), Settings(beta=beta, margin=0.5))
        assert_close({name: loss[0] for name, loss in ours.items()}, theirs, atol=1e-6, rtol=1e-6)
