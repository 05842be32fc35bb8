"""What a preference step tells: sums over its pairs, their means, and how far rewards go along with length.

The state between steps (the mean reward for bco_pair, the moments of the correlation) is in MMEngine's message hub,
which checkpoints hold: a resumed run goes on with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from mmengine.logging import MessageHub

from .objectives import PairLogProbs, Settings, rewards

REWARDS = "preference_rewards"  # in the message hub: their sum, and the pairs
MOMENTS = "preference_moments"  # in the message hub: those of `_LENGTHS` and `margin`, faded
FADE = 0.98  # per step: the correlation is that of the last 50 steps or so
ENOUGH = 200  # pairs, before there is a correlation

_LENGTHS = ("gap", "gap_squared", "margin_squared", "gap_margin")  # gap: tokens of chosen minus rejected
_ANSWERS = ("log_prob_chosen", "log_prob_rejected", "tokens_chosen", "tokens_rejected", "kl")
FIGURES = ("pairs", "reward_chosen", "reward_rejected", "accuracy", *_ANSWERS, *_LENGTHS)


def sums_of_pairs(
    pairs: PairLogProbs, settings: Settings, losses: Mapping[str, torch.Tensor], counts: torch.Tensor, kl: torch.Tensor
) -> torch.Tensor:
    """The sums that `FIGURES` and the names of ``losses`` name, float32.

    Args:
        pairs: ``P`` of them.
        settings: For their rewards.
        losses: Each objective's, float32 ``[P]``.
        counts: bool ``[P]``, False for a filler.
        kl: float32 ``[P]``.
    """
    chosen, rejected = rewards(pairs, settings)
    margin, gap = chosen - rejected, (pairs.chosen_tokens - pairs.rejected_tokens).float()
    of_pairs = (torch.ones_like(chosen), chosen, rejected, margin > 0)
    of_answers = (pairs.chosen, pairs.rejected, pairs.chosen_tokens, pairs.rejected_tokens, kl)
    columns = (*of_pairs, *of_answers, gap, gap**2, margin**2, gap * margin, *losses.values())
    return torch.stack([torch.where(counts, column.float(), 0.0).sum() for column in columns])


def means_of_step(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over the pairs of a step, and the updated state; empty for a step without pairs.

    Returns:
        A mean for each of the sums but those of lengths; ``pairs``; ``margin``; and after `ENOUGH` pairs
        ``length_correlation``: of margins with how much longer the chosen answer is.
    """
    pairs = sums["pairs"]
    if not pairs:
        return {}
    margin = sums["reward_chosen"] - sums["reward_rejected"]
    hub = MessageHub.get_current_instance()
    total, count = hub.get_info(REWARDS, (0.0, 0.0))
    hub.update_info(REWARDS, (total + (sums["reward_chosen"] + sums["reward_rejected"]) / 2, count + pairs))
    fresh = (pairs, margin, *(sums[name] for name in _LENGTHS))
    past = hub.get_info(MOMENTS, (0.0,) * len(fresh))
    moments = tuple(FADE * old + new for old, new in zip(past, fresh, strict=True))
    hub.update_info(MOMENTS, moments)
    means = {name: value / pairs for name, value in sums.items() if name not in ("pairs", *_LENGTHS)}
    correlation = {"length_correlation": _correlation(*moments)} if count + pairs >= ENOUGH else {}
    return {"pairs": pairs, **means, "margin": margin / pairs, **correlation}


def reward_mean() -> float:
    """The mean reward of all answers of the steps before; 0 at the first."""
    total, pairs = MessageHub.get_current_instance().get_info(REWARDS, (0.0, 0.0))
    return total / pairs if pairs else 0.0


def _correlation(pairs: float, margin: float, gap: float, gaps: float, margins: float, products: float) -> float:
    """Pearson's, of weighted sums; 0 where either doesn't vary."""
    spread = (gaps / pairs - (gap / pairs) ** 2) * (margins / pairs - (margin / pairs) ** 2)
    return (products / pairs - gap * margin / pairs**2) / math.sqrt(spread) if spread > 1e-12 else 0.0
