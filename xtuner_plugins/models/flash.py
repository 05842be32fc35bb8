"""The two trainings of a Flash model, whose router compresses tiles to a quarter of their tokens.

Stage 1, consistency: the model answers with randomly compressed tiles as its reference does with all tokens.
Stage 2, router: everything else is frozen; a tile's label is whether compressing it raises the loss of the answer.

Both follow the report of InternVL3.5 (arXiv 2508.18265, "ViCO"), whose training code isn't public. What it leaves open
is our choice, see docs/flash.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..ranges import check
from ..weights.loader import read_config
from .flash_rows import FlashPreprocessor
from .loss_head import softmax_rows
from .losses import mean_weight_of
from .preference import Reference
from .rows import Row
from .vlm import VisionLanguageModel, per_segment

RATIOS = "flash_ratios"  # of past steps, in the message hub, which checkpoints keep


class FlashModel(VisionLanguageModel):
    """A Flash model in training: rows with compressed tiles beside the whole one.

    Args:
        base: A directory with ``flash_mode`` (``tools/build_base_model.py --flash`` makes one).
        data_preprocessor: Config of a `FlashPreprocessor`.
        **settings: What trains of the other parts and how, as `VisionLanguageModel`.

    Raises:
        ValueError: As `VisionLanguageModel`; or the base is no Flash model.
    """

    choice = "draw"  # of `FlashPreprocessor`

    def __init__(self, base: str, *, data_preprocessor: Mapping[str, Any] | None = None, **settings: Any):
        if not getattr(read_config(base), "flash_mode", False):
            raise ValueError(
                f"model.base={base!r} is no Flash model: tools/build_base_model.py --vision {base} --llm {base} "
                f"--projector {base} --flash --out OUT makes one of it"
            )
        super().__init__(base, data_preprocessor=data_preprocessor or dict(type=FlashPreprocessor), **settings)
        if self.sequence_parallel > 1:
            raise ValueError("sequence_parallel: rows with compressed tiles aren't cut; leave it 1")
        self.data_preprocessor.choice = self.choice

    def _embed(self, row: Row, patches: torch.Tensor) -> torch.Tensor:
        if row.rates is None:
            return super()._embed(row, patches)
        embeds = self.model.get_input_embeddings()(row.input_ids)
        for project, tiles, positions in (
            (self.model.project, row.rates.many, row.rates.many_positions),
            (self.model.project_compressed, row.rates.few, row.rates.few_positions),
        ):
            # Both projectors run in every step, if need be on a tile whose features aren't used: DDP waits for them.
            features = project(patches[tiles] if len(tiles) else patches[:1]).to(embeds.dtype)
            if len(tiles):
                embeds = embeds.index_copy(1, positions, features.flatten(0, 1)[None])
            else:
                embeds = embeds + features.sum() * 0.0
        return embeds

    def forward(
        self,
        row: Row,
        pixel_values: torch.Tensor,
        shorter: tuple[Row, ...] = (),
        mode: str = "loss",
        mean_weight: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Computes the loss of a batch.

        Args:
            row: With all tokens.
            pixel_values: As `VisionLanguageModel.forward`.
            shorter: The same samples with compressed tiles, of a `FlashPreprocessor`.
            mode, mean_weight: As there.

        Returns:
            As there, and ``metrics``, sums over the batch that `metric_names` names.
        """
        if mode != "loss":
            return super().forward(row, pixel_values, mode)
        loss, each, metrics = self._compare(row, pixel_values, shorter, mean_weight)
        metrics = torch.stack([torch.as_tensor(metric, device=loss.device).float() for metric in metrics])
        return self._outputs(row, pixel_values, loss, per_segment(row, each), metrics=metrics)


def weights_of(row: Row, mean_weight: torch.Tensor | None) -> torch.Tensor:
    """What each target counts in the mean over a step, float32 ``[K]``; ``mean_weight`` as `mean_weight_of`."""
    weights = torch.ones_like(row.targets, dtype=torch.float32) if row.weights is None else row.weights
    return weights / mean_weight_of(weights, mean_weight)


def divergence(
    hidden: torch.Tensor, head: nn.Module, expected: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far a model's predictions are from its reference's: KL(reference || model), over all words.

    Logits of both exist for a bounded number of targets at a time and are computed again in the backward pass.

    Args:
        hidden: ``[K, D]``, of the model before each target.
        head: Maps ``[..., D]`` to ``[..., V]``.
        expected: ``[K, D]``, of the reference, without gradient.
        weight: Of the reference's head, ``[V, D]``.
        targets: int64 ``[K]``.

    Returns:
        The divergence at each target, with gradient, and the model's cross entropy, without; float32 ``[K]``.
    """

    def of_chunk(hidden, expected, targets):
        own = head(hidden).float().log_softmax(-1)
        reference = F.linear(expected, weight).float().log_softmax(-1)
        return F.kl_div(own, reference, reduction="none", log_target=True).sum(-1), -own.gather(1, targets[:, None])

    rows = max(1, softmax_rows(len(weight)) // 2)
    chunks = zip(*(each.split(rows) for each in (hidden, expected.detach(), targets)), strict=True)
    found = [checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat([kl for kl, _ in found]), torch.cat([each for _, each in found])[:, 0].detach()


@MODELS.register_module()
class FlashConsistencyModel(FlashModel):
    """Stage 1: trains ``mlp2``, and what the settings say, to answer with compressed tiles as the reference does.

    The loss is the mean over the answers' tokens of KL(reference || model). The reference is the base as the run found
    it, with all tokens: adapters are switched off and ``mlp1`` alone projects; of what trains whole a copy is kept.

    Args:
        base, **settings: As `FlashModel`.
    """

    flash_parts = ("mlp2",)
    metric_names = ("cross_entropy", "targets", "image_tokens", "all_image_tokens")

    def __init__(self, base: str, **settings: Any):
        super().__init__(base, **settings)
        others = nn.ModuleList([self.model.vision_model, self.model.mlp1, self.model.language_model])
        self._reference = Reference(others, self.dtype)

    def _compare(self, row, pixel_values, shorter, mean_weight):
        """Loss, cross entropy of each target, and metrics; ``shorter`` is one row, of the model that trains."""
        (short,) = shorter
        head = self.model.language_model.get_output_embeddings()
        with self.computing(pixel_values.device):
            patches = self._encode(pixel_values)
            with self._reference.in_place():
                own = patches if self.visual_encoder_is_frozen else self._encode(pixel_values)
                expected, weight = self._run_llm(row, own)[0, row.predicting], head.weight
            hidden = self._run_llm(short, patches)[0, short.predicting]
            divergences, each = divergence(hidden, head, expected, weight, row.targets)
        loss = (divergences * weights_of(row, mean_weight)).sum()
        tokens = len(short.image_positions), len(row.image_positions)
        return loss, each, (each[: row.num_supervised].sum(), row.num_supervised, *tokens)

    def end_step(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The step's cross entropy with compressed tiles, and the share of image tokens that it read."""
        return {
            "cross_entropy": sums["cross_entropy"] / max(sums["targets"], 1),
            "image_tokens": sums["image_tokens"] / max(sums["all_image_tokens"], 1),
        }


@MODELS.register_module()
class FlashRouterModel(FlashModel):
    """Stage 2: trains the router alone.

    The ratio of a tile is the loss of its sample's answer with it compressed to that with all tokens. Its label is to
    compress it where the ratio is below the ``percentile`` of the last ``window`` ratios, and the loss is the mean
    cross entropy over a sample's tiles. Without ``exact_labels`` the tiles of a sample are compressed together and
    share one ratio: two passes in place of T + 2.

    Args:
        base: A Flash model after stage 1. Whatever isn't the router must be frozen.
        percentile: Share of the tiles whose label is to compress.
        window: Ratios, of each rank.
        exact_labels: A ratio for each tile; logs too how often the cheap label is the same.
        **settings: As `FlashModel`.
    """

    flash_parts = ("pooling_before_gating", "gating")
    metric_names = ("tiles_routed", "compress_labels", "right", "agreeing")

    def __init__(
        self, base: str, *, percentile: float = 0.7, window: int = 1024, exact_labels: bool = False, **settings: Any
    ):
        check("flash_percentile", percentile)
        check("flash_window", window)
        self.choice = "each" if exact_labels else "all"
        super().__init__(base, **{"freeze_projector": True, **settings})
        if others := {
            n for n, p in self.model.named_parameters() if p.requires_grad and not n.startswith(self.flash_parts)
        }:
            raise ValueError(f"FlashRouterModel trains the router alone, but {min(others)} would train, too; freeze it")
        for number in (3, 4):  # which no forward pass uses
            self.model.pooling_before_gating.get_submodule(f"attn{number}").requires_grad_(False)
            self.model.pooling_before_gating.get_submodule(f"norm{number}").requires_grad_(False)
        self.percentile, self.window = percentile, window

    def _compare(self, row, pixel_values, shorter, mean_weight):
        """``shorter`` has all tiles compressed, then one of each sample; a sample weighs what its answer weighs."""
        with torch.no_grad(), self.computing(pixel_values.device):
            patches = self._encode(pixel_values)
            each, *others = (-self._token_log_probs(one, patches) for one in (row, *shorter))
            ratios = [per_segment(row, other) / per_segment(row, each).clamp(min=1e-9) for other in others]
        owners, numbers = _tiles_of(row, self.num_image_token)
        with self.computing(pixel_values.device):
            logits = self.model.route(patches).float()
        cheap = ratios[0][owners]
        exact = torch.stack(ratios[1:])[numbers, owners] if len(ratios) > 1 and len(owners) else cheap
        labels, cheap_labels = (self._label(r, name) for r, name in ((exact, "exact"), (cheap, "cheap")))
        if not len(owners):
            return logits.sum() * 0.0, each, (0, 0, 0, 0)
        weights = per_segment(row, weights_of(row, mean_weight))
        share = weights[owners] / torch.bincount(owners, minlength=len(weights))[owners]
        loss = (F.cross_entropy(logits, labels, reduction="none") * share.float()).sum()
        right = (logits.argmax(-1) == labels).sum()
        return loss, each, (len(owners), (labels == 0).sum(), right, (labels == cheap_labels).sum())

    def _label(self, ratios: torch.Tensor, name: str) -> torch.Tensor:
        """0 (compress) where a ratio is below the percentile of the last ones, these included; else 1."""
        if not len(ratios):
            return ratios.long()
        hub, key = MessageHub.get_current_instance(), f"{RATIOS}_{name}"
        past = (*hub.get_info(key, ()), *ratios.tolist())[-self.window :]
        if self.training:
            hub.update_info(key, past)
        limit = torch.quantile(ratios.new_tensor(past), self.percentile)
        return (ratios >= limit).long()

    def end_step(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Shares of the step's tiles: labels to compress, right answers of the router, cheap labels that are exact."""
        tiles = max(sums["tiles_routed"], 1)
        found = {"compress_labels": sums["compress_labels"] / tiles, "router_accuracy": sums["right"] / tiles}
        return {**found, "label_agreement": sums["agreeing"] / tiles} if self.choice == "each" else found


def _tiles_of(row: Row, tokens_per_tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each tile its segment, and its number among the segment's tiles; int64 ``[T]``."""
    first = row.image_positions[::tokens_per_tile].contiguous()
    owners = torch.bucketize(first, torch.tensor(row.segments.bounds[1:], device=first.device), right=True)
    counts = torch.bincount(owners, minlength=len(row.segments.bounds) - 1)
    return owners, torch.arange(len(first), device=first.device) - (counts.cumsum(0) - counts)[owners]
