"""Preference objectives: from log probabilities of a chosen and a rejected answer to a loss per pair.

| name     | loss per pair                                                  | source                     |
|----------|----------------------------------------------------------------|----------------------------|
| dpo      | -(1 - s) log sigmoid(b h) - s log sigmoid(-b h), s: smoothing  | Rafailov et al. 2023; cDPO |
| ipo      | (h' - 1 / (2 b))^2, h' of mean log probabilities               | Azar et al. 2023           |
| hinge    | max(0, 1 - b h)                                                | Zhao et al. 2023 (SLiC)    |
| bco_pair | -log sigmoid(r_c - d) - log sigmoid(d - r_r), d: mean reward   | Jung et al. 2024           |
| orpo     | -log sigmoid(log odds_c - log odds_r), of mean probabilities   | Hong et al. 2024           |
| simpo    | -log sigmoid(b (l_c - l_r) - g), l: mean log probabilities     | Meng et al. 2024           |
| sft      | -l_c                                                           |                            |

c and r are the chosen and the rejected answer, r_c = b (log p(c) - log p_reference(c)) is its reward, and
b h = r_c - r_r. A mixture is a weighted sum; that of MPO (Wang et al. 2024) is in `configs/finetune_mpo_full.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..ranges import OBJECTIVES


@dataclass(frozen=True)
class PairLogProbs:
    """Log probabilities of the answers of ``P`` pairs, float32 ``[P]`` each: sums over an answer's tokens."""

    chosen: torch.Tensor  # of the model that trains, with gradient
    rejected: torch.Tensor
    reference_chosen: torch.Tensor | None  # None where no objective needs a reference
    reference_rejected: torch.Tensor | None
    chosen_tokens: torch.Tensor  # their number
    rejected_tokens: torch.Tensor

    def log_ratios(self, per_token: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """``log p - log p_reference`` of chosen and rejected answers, or their means over tokens."""
        chosen, rejected = self.chosen - self.reference_chosen, self.rejected - self.reference_rejected
        return (chosen / self.chosen_tokens, rejected / self.rejected_tokens) if per_token else (chosen, rejected)

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean log probability per token of chosen and rejected answers."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens


@dataclass(frozen=True)
class Settings:
    """What objectives are tuned with."""

    beta: float = 0.1  # scale of rewards: how far the model may go from the reference
    label_smoothing: float = 0.0  # share of pairs whose labels are taken to be swapped (dpo)
    per_token: bool = False  # rewards of mean log probabilities (dpo, hinge, bco_pair): long answers don't weigh more
    margin: float = 0.5  # of simpo, in units of its reward
    reward_mean: float = 0.0  # of the pairs of earlier steps (bco_pair)


def rewards(pairs: PairLogProbs, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of chosen and rejected answers; without a reference, of their mean log probabilities."""
    chosen, rejected = pairs.means() if pairs.reference_chosen is None else pairs.log_ratios(settings.per_token)
    return settings.beta * chosen, settings.beta * rejected


def _dpo(pairs: PairLogProbs, settings: Settings) -> torch.Tensor:
    chosen, rejected = rewards(pairs, settings)
    smoothing = settings.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(chosen - rejected) - smoothing * F.logsigmoid(rejected - chosen)


def _ipo(pairs: PairLogProbs, settings: Settings) -> torch.Tensor:
    chosen, rejected = pairs.log_ratios(per_token=True)
    return (chosen - rejected - 1 / (2 * settings.beta)) ** 2


def _hinge(pairs: PairLogProbs, settings: Settings) -> torch.Tensor:
    chosen, rejected = rewards(pairs, settings)
    return torch.relu(1 - (chosen - rejected))


def _bco_pair(pairs: PairLogProbs, settings: Settings) -> torch.Tensor:
    chosen, rejected = rewards(pairs, settings)
    return -F.logsigmoid(chosen - settings.reward_mean) - F.logsigmoid(settings.reward_mean - rejected)


def _orpo(pairs: PairLogProbs, settings: Settings) -> torch.Tensor:
    chosen, rejected = (mean - _log1mexp(mean) for mean in pairs.means())
    return -F.logsigmoid(chosen - rejected)


def _simpo(pairs: PairLogProbs, settings: Settings) -> torch.Tensor:
    chosen, rejected = pairs.means()
    return -F.logsigmoid(settings.beta * (chosen - rejected) - settings.margin)


def _sft(pairs: PairLogProbs, settings: Settings) -> torch.Tensor:
    return -pairs.means()[0]


def _log1mexp(log_p: torch.Tensor) -> torch.Tensor:
    """``log(1 - exp(x))`` of x < 0, exact near 0; x = 0 counts as the number below."""
    return torch.log(-torch.expm1(log_p.clamp(max=-torch.finfo(log_p.dtype).tiny)))


_ALL = (_dpo, _ipo, _hinge, _bco_pair, _orpo, _simpo, _sft)
LOSSES: dict[str, Callable[[PairLogProbs, Settings], torch.Tensor]] = dict(zip(OBJECTIVES, _ALL, strict=True))


def preference_losses(
    pairs: PairLogProbs, weights: Mapping[str, float], settings: Settings
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The weighted sum of objectives, float32 ``[P]``, and each of them without weight and gradient."""
    losses = {name: LOSSES[name](pairs, settings) for name in weights}
    total = sum(weights[name] * loss for name, loss in losses.items())
    return total, {name: loss.detach() for name, loss in losses.items()}
