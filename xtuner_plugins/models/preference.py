"""The model of preference tuning: both answers of a pair in one row, compared with a reference.

The row holds each prompt once, with both answers behind it, neither of which sees the other; so each image is encoded
once and each prompt is read once. Its hidden states before the answers' tokens give the log probabilities of both.

The mean reward of earlier steps, for bco_pair, is in MMEngine's message hub, which checkpoints hold: a resumed run goes
on with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ..ranges import OBJECTIVES, check, check_objectives
from .losses import mean_weight_of
from .objectives import PairLogProbs, Settings, preference_losses, rewards
from .rows import Row
from .sequence_parallel import size_of, sum_over_group
from .vlm import VisionLanguageModel

FREE = tuple(name for name, needs_reference in OBJECTIVES.items() if not needs_reference)
REWARDS = "preference_rewards"  # in the message hub: their sum, and the pairs
_ANSWERS = ("log_prob_chosen", "log_prob_rejected", "tokens_chosen", "tokens_rejected", "kl")
FIGURES = ("pairs", "reward_chosen", "reward_rejected", "accuracy", *_ANSWERS)


class Reference:
    """A model as it was before training: adapters off, everything else that trains replaced by a frozen copy.

    Args:
        model: Before its first step; its trained parameters that aren't adapters' are copied.
        dtype: Of the copies: that the model computes in.
        is_precomputed: No copies: the model is its own reference until its first step.

    Raises:
        ValueError: Under ZeRO-3 parameters outside of adapters train, and nothing is precomputed.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, is_precomputed: bool):
        self._modules = list(model.modules())
        self._adapters = [each for each in self._modules if isinstance(each, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        adapted = {id(parameter) for module in self._adapters for parameter in module.parameters()}
        trained = [
            (module, name, parameter)
            for module in self._modules
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad and id(parameter) not in adapted
        ]
        self.is_complete = not (trained and is_precomputed)  # the reference at any time, not only at first
        if trained and self.is_complete and is_deepspeed_zero3_enabled():
            raise ValueError(
                "objectives with a reference need a frozen copy of what trains outside of adapters, which ZeRO-3 would "
                "split; use precompute_reference = True, --deepspeed deepspeed_zero2, LoRA with a frozen projector, or "
                f"objectives without reference ({', '.join(FREE)})"
            )
        copied = trained if self.is_complete else ()
        self._copies = [(module, name, value.detach().to(dtype, copy=True)) for module, name, value in copied]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model is the reference, in evaluation mode, without gradient."""
        with ExitStack() as undo, torch.no_grad():
            for module in self._modules:
                if module.training:
                    module.training = False
                    undo.callback(setattr, module, "training", True)
            for module in self._adapters:
                if not module.disable_adapters:
                    module.enable_adapters(False)
                    undo.callback(module.enable_adapters, True)
            for index, (module, name, copy) in enumerate(self._copies):
                original = module._parameters[name]
                copy = copy.to(original.device)  # the first time; then it is there
                self._copies[index] = (module, name, copy)
                module._parameters[name] = copy
                undo.callback(module._parameters.__setitem__, name, original)
            yield


@MODELS.register_module()
class PreferenceModel(VisionLanguageModel):
    """Tunes an InternVL-style model on preference pairs (`PreferenceDataset`, `collate_pairs`).

    The loss of an optimizer step is the mean over its pairs, in all micro-batches and on all ranks, of a weighted sum
    of `objectives`. The reference is the base as the run found it (`Reference`).

    Args:
        base: As `VisionLanguageModel`; also the reference, and an attribute.
        objectives: Name to weight, e.g. ``dict(dpo=1.0)``.
        beta: Scale of rewards.
        label_smoothing, margin: Of dpo, from 0 to below 0.5; of simpo.
        per_token: Rewards of mean instead of summed log probabilities.
        precomputed_reference: The reference's log probabilities come with the batches (`PrecomputedReferenceHook`);
            no frozen copies are kept.
        **settings: What trains and how, as `VisionLanguageModel`.

    Raises:
        ValueError: As `VisionLanguageModel`, or settings of objectives out of range or without use.
    """

    def __init__(
        self,
        base: str,
        *,
        objectives: Mapping[str, float],
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        per_token: bool = False,
        margin: float = 0.5,
        precomputed_reference: bool = False,
        **settings,
    ):
        self.objectives = check_objectives(objectives)
        for name, value in (("beta", beta), ("label_smoothing", label_smoothing), ("simpo_margin", margin)):
            check(name, value)
        self._check_use(label_smoothing, per_token, precomputed_reference)
        super().__init__(base, **settings)
        self.base, self.precomputed_reference = base, precomputed_reference
        self.settings = Settings(beta, label_smoothing, per_token, margin)
        self.metric_names = (*FIGURES, *(f"loss_{name}" for name in self.objectives))
        self._reference = None
        if any(OBJECTIVES[name] for name in self.objectives):
            self._reference = Reference(self.model, self.dtype, is_precomputed=precomputed_reference)

    def _check_use(self, label_smoothing: float, per_token: bool, precomputed_reference: bool) -> None:
        """Raises where no objective uses a setting."""
        for setting, is_set, users in (
            (f"label_smoothing={label_smoothing!r}", label_smoothing, {"dpo"}),
            ("reward_per_token=True", per_token, {"dpo", "hinge", "bco_pair"}),
            ("precompute_reference=True", precomputed_reference, OBJECTIVES.keys() - FREE),
        ):
            if is_set and not users & self.objectives.keys():
                named = ", ".join(name for name in OBJECTIVES if name in users)
                raise ValueError(f"{setting} does nothing with objectives={self.objectives!r}; it is for {named}")

    def _compute(self, row, pixel_values, mean_weight):
        """As `VisionLanguageModel._compute`, of prompts with two answers each; the losses are those of the pairs."""
        if row.segments.branches is None:
            raise ValueError("PreferenceModel takes rows of `collate_pairs`; these have no pairs")
        with self.computing(pixel_values.device):
            patches = self._encode(pixel_values)
            expected = self._expected(row, pixel_values, patches)
            each = self._token_log_probs(row, patches)
        pairs, weights = _pairs_of(row, each, expected)
        settings = replace(self.settings, reward_mean=reward_mean())
        total, losses = preference_losses(pairs, self.objectives, settings)
        loss = (total * weights).sum() / mean_weight_of(weights, mean_weight)
        with torch.no_grad():
            metrics = sums_of_pairs(pairs, settings, losses, weights > 0, _kl(row, pairs, each, expected))
        return loss, total.detach().double(), metrics / size_of(row.segments.group)

    @property
    def reference_is_complete(self) -> bool:
        """Whether `reference_log_probs` may be asked after the first step, too."""
        return self._reference is None or self._reference.is_complete

    @torch.no_grad()
    def reference_log_probs(self, row: Row, pixel_values: torch.Tensor) -> torch.Tensor:
        """The reference's log probabilities of a row's targets, float32 ``[K]``."""
        with self.computing(pixel_values.device), self._reference.in_place():
            return self._token_log_probs(row, self._encode(pixel_values))

    def _expected(self, row: Row, pixel_values: torch.Tensor, patches: torch.Tensor) -> torch.Tensor | None:
        """As `reference_log_probs`, or those that come with the row; None where no objective needs a reference."""
        if self._reference is None or row.reference is not None:
            return row.reference
        if not self._reference.is_complete:
            raise ValueError(
                "these pairs have no precomputed log probabilities of the reference, and the model has changed since: "
                "leave val_data_paths empty, or set precompute_reference = False"
            )
        with self._reference.in_place():
            own = patches if self.visual_encoder_is_frozen else self._encode(pixel_values)
            return self._token_log_probs(row, own)

    def end_step(self, sums: Mapping[str, float]) -> dict[str, float]:
        """A mean over the step's pairs for each of the sums, ``pairs``, and ``margin``, the difference of the rewards.

        Empty for a step without pairs. The rewards are added to those of earlier steps.
        """
        pairs = sums["pairs"]
        if not pairs:
            return {}
        hub, answers = MessageHub.get_current_instance(), (sums["reward_chosen"] + sums["reward_rejected"]) / 2
        total, count = hub.get_info(REWARDS, (0.0, 0.0))
        hub.update_info(REWARDS, (total + answers, count + pairs))
        means = {name: value / pairs for name, value in sums.items()}
        return {**means, "pairs": pairs, "margin": means["reward_chosen"] - means["reward_rejected"]}


def _per_answer(row: Row, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of values ``[K]`` over chosen and over rejected answers, ``[P]`` each; ranks that share a row know all."""
    num_pairs = sum(segment >= 0 for segment in row.segments.branches.follows) // 2
    sums = values.new_zeros(len(row.segments.bounds) - 1).index_add(0, row.owners, values[: row.num_supervised])
    return sum_over_group(sums, row.segments.group)[: 3 * num_pairs].view(num_pairs, 3)[:, 1:].unbind(1)


def _pairs_of(row: Row, each: torch.Tensor, expected: torch.Tensor | None) -> tuple[PairLogProbs, torch.Tensor]:
    """The log probabilities of a row's pairs, and the weight of each pair, float32 ``[P]``.

    Ranks that share a row compute an equal part of its loss.
    """
    tokens = _per_answer(row, torch.ones_like(each))
    weights = tokens[0] / tokens[0] if row.weights is None else _per_answer(row, row.weights)[0] / tokens[0]
    reference = (None, None) if expected is None else _per_answer(row, expected)
    return PairLogProbs(*_per_answer(row, each), *reference, *tokens), weights / size_of(row.segments.group)


def _kl(row: Row, pairs: PairLogProbs, each: torch.Tensor, expected: torch.Tensor | None) -> torch.Tensor:
    """How far the model is from the reference on each pair's answers, per token, float32 ``[P]``: ``r - 1 - log r``.

    An estimate of the divergence between them (Schulman 2020), never negative; on answers that neither has written.
    """
    log_ratio = torch.zeros_like(each) if expected is None else expected - each
    return sum(_per_answer(row, torch.expm1(log_ratio) - log_ratio)) / (pairs.chosen_tokens + pairs.rejected_tokens)


def sums_of_pairs(
    pairs: PairLogProbs, settings: Settings, losses: Mapping[str, torch.Tensor], counts: torch.Tensor, kl: torch.Tensor
) -> torch.Tensor:
    """The sums that `FIGURES` and the names of ``losses`` (float32 ``[P]``) name, float32.

    ``counts``, bool ``[P]``, is False for a filler; ``kl`` is float32 ``[P]``.
    """
    chosen, rejected = rewards(pairs, settings)
    of_pairs = (torch.ones_like(chosen), chosen, rejected, chosen > rejected)
    of_answers = (pairs.chosen, pairs.rejected, pairs.chosen_tokens, pairs.rejected_tokens, kl)
    columns = (*of_pairs, *of_answers, *losses.values())
    return torch.stack([torch.where(counts, column.float(), 0.0).sum() for column in columns])


def reward_mean() -> float:
    """The mean reward of all answers of the steps before; 0 at the first."""
    total, pairs = MessageHub.get_current_instance().get_info(REWARDS, (0.0, 0.0))
    return total / pairs if pairs else 0.0
