"""Preference objectives beside TRL's own: its trainer's loss for the same log probabilities.

The package is fetched from the package index; where that can't be reached, these tests are skipped.
"""

import itertools
import subprocess
import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from xtuner_plugins.models.objectives import PairLogProbs, Settings, preference_losses

pytestmark = pytest.mark.release
TRL = "1.16.0"
OURS_TO_TRL = {"dpo": "sigmoid", "ipo": "ipo", "hinge": "hinge", "bco_pair": "bco_pair", "sft": "sft"}
LENGTHS = ((5, 9), (12, 3), (7, 7))  # tokens of chosen and rejected answers


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), f"trl=={TRL}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"trl {TRL} can't be had: {done.stderr.strip()[-200:]}")
    sys.path.insert(0, str(folder))
    yield __import__("trl")
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trl"]:
        del sys.modules[name]


def token_log_probs(seed):
    """Log probabilities of the tokens of one pair, of model and reference, and its lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = LENGTHS[seed % len(LENGTHS)]
    return [[-3 * torch.rand(length, generator=generator) for length in lengths] for _ in range(2)], lengths


def trl_loss(trl, name, own, reference, lengths, beta, smoothing):
    """The loss of TRL's DPO trainer, which gets the log probabilities from a model that only says them."""
    longest = max(lengths)
    mask = torch.zeros(2, 1 + longest, dtype=torch.int64)  # a prompt of one token
    said = torch.zeros(2, longest)
    for side, length in enumerate(lengths):
        mask[side, 1 : 1 + length] = 1
        said[side, :length] = own[side]
    zeros = torch.zeros_like(said)
    said = SimpleNamespace(log_probs=said, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value, gather=lambda value: value),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[name],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        state=SimpleNamespace(num_input_tokens_seen=0),
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[0].sum()[None],
        "ref_rejected_logps": reference[1].sum()[None],
    }
    return trl.DPOTrainer._compute_loss(trainer, lambda **_: said, inputs, False)


def our_loss(name, own, reference, lengths, **settings):
    sums = [answer.sum()[None] for answer in (*own, *reference)]
    counts = [torch.tensor([length]) for length in lengths]
    return preference_losses(PairLogProbs(*sums, *counts), {name: 1.0}, Settings(**settings))[0][0]


def test_losses_are_those_of_trl(trl):
    for name, beta, seed in itertools.product(OURS_TO_TRL, (0.1, 0.7), range(6)):
        (own, reference), lengths = token_log_probs(seed)
        ours = our_loss(name, own, reference, lengths, beta=beta)
        theirs = trl_loss(trl, OURS_TO_TRL[name], own, reference, lengths, beta, 0.0)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6, msg=name)


def test_losses_without_a_reference_are_those_of_trl(trl):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    accelerator = SimpleNamespace(device="cpu")
    simpo = dict(alpha=0.0, loss_type="simpo", simpo_gamma=0.5, label_smoothing=0.0)
    for seed in range(6):
        (own, reference), lengths = token_log_probs(seed)
        means = [answer.mean()[None] for answer in own]
        odds = -ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=1.0, accelerator=accelerator), *means)[0]
        cpo = CPOTrainer.cpo_loss(SimpleNamespace(beta=2.0, accelerator=accelerator, **simpo), *means)[0]
        for name, theirs in (("orpo", odds), ("simpo", cpo)):
            ours = our_loss(name, own, reference, lengths, beta=2.0, margin=0.5)
            torch.testing.assert_close(ours, theirs[0], atol=1e-6, rtol=1e-6, msg=name)
