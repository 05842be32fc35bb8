"""The two trainings of a Flash model, whose router compresses tiles to a quarter of their tokens.

Stage 1, consistency: the model answers with randomly compressed tiles as its reference does with all tokens.
Stage 2, router: everything else is frozen; a tile's label is whether compressing it raises the loss of the answer.

Both follow the report of InternVL3.5 (arXiv 2508.18265, "ViCO"), whose training code isn't public. What it leaves open
is our choice, see docs/flash.md.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..hub.modeling_flash import kept_tokens
from ..ranges import check
from ..weights.loader import read_config
from .losses import mean_weight_of, softmax_rows
from .preference import Reference
from .preprocessor import TilePreprocessor
from .rows import Rates, Row, fill_row, make_row, segments_of
from .vlm import VisionLanguageModel, per_segment, placed

RATIOS = "flash_ratios"  # of past steps, in the message hub, which checkpoints keep


def draw_tiles(sources: Sequence[str], num_tiles: Sequence[int], seed: int) -> torch.Tensor:
    """Which tiles of a batch are compressed, bool ``[T]``: each with probability 1/2, by seed and sample alone.

    So the length of a row is known before the run, and is the same after a resume and on any number of ranks. Of each
    sample there are ``file:line`` and its number of tiles.
    """
    generators = [random.Random(f"{seed} {source}") for source in sources]
    drawn = [rng.random() < 0.5 for rng, tiles in zip(generators, num_tiles, strict=True) for _ in range(tiles)]
    return torch.tensor(drawn, dtype=torch.bool)


def compress_row(row: Row, compressed: torch.Tensor, tokens_per_tile: int) -> Row:
    """The row without the tokens that compressed tiles leave out; it holds samples, not pairs, on the CPU.

    ::

        tiles        0 0 0 0 1 1 1 1      N = 4; tile 0 is compressed
        row      a b 0 0 0 0 1 1 1 1 c
        result   a b 0 1 1 1 1 c          rates.few = [0], rates.many = [1]

    Args:
        row: The whole one.
        compressed: bool ``[T]``.
        tokens_per_tile: N.
    """
    kept, of_image = torch.ones_like(row.input_ids[0], dtype=torch.bool), kept_tokens(compressed, tokens_per_tile)
    kept[row.image_positions] = of_image
    new = kept.cumsum(0) - 1  # position in the new row
    bounds = torch.cat([new.new_zeros(1), (new + 1)[torch.tensor(row.segments.bounds[1:]) - 1]])
    lengths = bounds.diff()
    positions = torch.arange(int(bounds[-1])) - bounds[:-1].repeat_interleave(lengths)
    images, of_few = new[row.image_positions[of_image]], compressed.repeat_interleave(tokens_per_tile)[of_image]
    rates = Rates(compressed.nonzero().flatten(), (~compressed).nonzero().flatten(), images[of_few], images[~of_few])
    return row._replace(
        input_ids=row.input_ids[:, kept],
        position_ids=positions[None],
        segments=segments_of(bounds, None),
        image_positions=images,
        predicting=new[row.predicting],
        rates=rates,
    )


@MODELS.register_module()
class FlashPreprocessor(TilePreprocessor):
    """As `TilePreprocessor`; beside the whole row it makes others in which some tiles are compressed, on the CPU.

    Args:
        seed: Of the draw (`draw_tiles`).
        **settings: As `TilePreprocessor`.

    Attributes:
        choice: The model sets it: ``'draw'`` makes one row, of `draw_tiles`; ``'all'`` one with every tile compressed;
            ``'each'`` that one, and then one for each tile of the sample with the most, in which the samples' tiles of
            this number are compressed.
    """

    def __init__(self, seed: int = 0, **settings: Any):
        super().__init__(**settings)
        self.seed, self.choice = seed, "draw"

    def forward(self, data: dict, training: bool = False) -> dict:
        """As `TilePreprocessor.forward`, and ``shorter``, a tuple of rows."""
        inputs, num_tiles = super().forward(data, training), data["num_tiles"].tolist()
        if self.choice == "draw":
            choices = [draw_tiles(data["sources"], num_tiles, self.seed)]
        else:
            numbers = torch.tensor([number for tiles in num_tiles for number in range(tiles)], dtype=torch.int64)
            choices = [torch.ones_like(numbers, dtype=torch.bool)]
            choices += [numbers == number for number in range(max(num_tiles) if self.choice == "each" else 0)]
        row, multiple = make_row(data, self.image_token), self.row_multiple if self.device.type == "cuda" else 1
        shorter = (fill_row(compress_row(row, each, self.tokens_per_tile), multiple) for each in choices)
        return {**inputs, "shorter": tuple(self.moved(each) for each in shorter)}


class FlashModel(VisionLanguageModel):
    """A Flash model in training: rows with compressed tiles beside the whole one.

    Args:
        base: A directory with ``flash_mode`` (``tools/build_base_model.py --flash`` makes one), else `ValueError`.
        data_preprocessor: Config of a `FlashPreprocessor`.
        **settings: What trains of the other parts and how, as `VisionLanguageModel`.
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
                embeds = placed(embeds, positions, features.flatten(0, 1))
            else:
                embeds = embeds + features.sum() * 0.0
        return embeds


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
        hidden, expected: ``[K, D]``, of the model and of the reference before each target.
        head, weight: Of the model, mapping ``[..., D]`` to ``[..., V]``, and of the reference, ``[V, D]``.
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
    Settings are those of `FlashModel`.
    """

    flash_parts = ("mlp2",)
    metric_names = ("cross_entropy", "targets", "image_tokens", "all_image_tokens")

    def __init__(self, base: str, **settings: Any):
        super().__init__(base, **settings)
        others = nn.ModuleList([self.model.vision_model, self.model.mlp1, self.model.language_model])
        self._reference = Reference(others, self.dtype, is_precomputed=False)

    def _compute(self, row, pixel_values, mean_weight, shorter):
        """As `VisionLanguageModel._compute`; ``shorter`` is one row, of the model that trains."""
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
        entropy = each[: row.num_supervised].sum()
        counts = row.num_supervised, len(short.image_positions), len(row.image_positions)
        metrics = torch.stack([entropy, *(torch.full_like(entropy, count) for count in counts)])
        return loss, per_segment(row, each), metrics

    def end_step(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The step's cross entropy with compressed tiles, and the share of image tokens that it read."""
        shares = {"cross_entropy": "targets", "image_tokens": "all_image_tokens"}
        return {name: sums[name] / max(sums[whole], 1) for name, whole in shares.items()}


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
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        if others := [name for name in trained if not name.startswith(self.flash_parts)]:
            raise ValueError(f"FlashRouterModel trains the router alone, but {min(others)} would train, too; freeze it")
        for name in ("attn3", "norm3", "attn4", "norm4"):  # which no forward pass uses
            getattr(self.model.pooling_before_gating, name).requires_grad_(False)
        self.percentile, self.window = percentile, window

    def _compute(self, row, pixel_values, mean_weight, shorter):
        """As there; ``shorter`` has all tiles compressed, then one of each sample; it weighs what its answer weighs."""
        with torch.no_grad(), self.computing(pixel_values.device):
            patches = self._encode(pixel_values)
            log_probs = (self._token_log_probs(one, patches) for one in (row, *shorter))
            losses, *others = (per_segment(row, -each) for each in log_probs)
            ratios = [other / losses.clamp(min=1e-9) for other in others]
        owners, numbers = _tiles_of(row, self.num_image_token)
        with self.computing(pixel_values.device):
            logits = self.model.route(patches).float()[: len(owners)]  # none of the black tile's
        cheap = ratios[0][owners]
        exact = torch.stack(ratios[1:])[numbers, owners] if len(ratios) > 1 else cheap
        labels, cheap_labels = (self._label(r, name) for r, name in ((exact, "exact"), (cheap, "cheap")))
        weights = per_segment(row, weights_of(row, mean_weight))
        share = weights[owners] / torch.bincount(owners, minlength=len(weights))[owners]
        loss = (F.cross_entropy(logits, labels, reduction="none") * share.float()).sum()
        counts = (labels >= 0, labels == 0, logits.argmax(-1) == labels, labels == cheap_labels)
        return loss, losses, torch.stack(counts).sum(1).float()

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
        names = {"compress_labels": "compress_labels", "router_accuracy": "right"}
        names |= {"label_agreement": "agreeing"} if self.choice == "each" else {}
        return {name: sums[count] / max(sums["tiles_routed"], 1) for name, count in names.items()}


def _tiles_of(row: Row, tokens_per_tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each tile its segment, and its number among the segment's tiles; int64 ``[T]``."""
    first = row.image_positions[::tokens_per_tile].contiguous()
    owners = torch.bucketize(first, torch.tensor(row.segments.bounds[1:], device=first.device), right=True)
    counts = torch.bincount(owners, minlength=len(row.segments.bounds) - 1)
    return owners, torch.arange(len(first), device=first.device) - (counts.cumsum(0) - counts)[owners]
