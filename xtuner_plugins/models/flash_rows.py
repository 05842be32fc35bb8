"""Rows in which some tiles have a quarter of their tokens, made on the CPU before the step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS

from ..hub.modeling_flash import kept_tokens
from .preprocessor import TilePreprocessor
from .rows import Rates, Row, fill_row, make_row, segments_of


def draw_tiles(sources: Sequence[str], num_tiles: Sequence[int], seed: int) -> torch.Tensor:
    """Which tiles of a batch are compressed, bool ``[T]``: each with probability 1/2, by seed and sample alone.

    So the length of a row is known before the run, and is the same after a resume and on any number of ranks.

    Args:
        sources: ``file:line`` of each sample.
        num_tiles: Of each sample.
        seed: Of the draw.
    """
    generators = [random.Random(f"{seed} {source}") for source in sources]
    drawn = [rng.random() < 0.5 for rng, tiles in zip(generators, num_tiles, strict=True) for _ in range(tiles)]
    return torch.tensor(drawn, dtype=torch.bool)


def compress_row(row: Row, compressed: torch.Tensor, tokens_per_tile: int) -> Row:
    """The row without the tokens that compressed tiles leave out.

    ::

        tiles        0 0 0 0 1 1 1 1      N = 4; tile 0 is compressed
        row      a b 0 0 0 0 1 1 1 1 c
        result   a b 0 1 1 1 1 c          rates.few = [0], rates.many = [1]

    Args:
        row: Samples, not preference pairs, on the CPU.
        compressed: bool ``[T]``.
        tokens_per_tile: N.
    """
    assert row.segments.branches is None
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
    """As `TilePreprocessor`; beside the whole row it makes others in which some tiles are compressed.

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
