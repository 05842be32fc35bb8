"""Turns a collated batch on the CPU into the model's inputs on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch.utils._pytree import tree_map_only

from ..datasets.ledger import Ledger
from ..hub.constants import IMAGENET_MEAN, IMAGENET_STD
from .rows import Row, check_counts, cut, fill_row, make_row
from .sequence_parallel import size_of


@MODELS.register_module()
class TilePreprocessor(BaseDataPreprocessor):
    """Moves a batch to the model's device and normalizes its tiles there: workers send uint8, a quarter of the bytes.

    The arithmetic is that of ``ToTensor`` and ``Normalize`` in float32; the encoder casts to its own dtype.

    Args:
        mean, std: Means of red, green and blue in [0, 1], and standard deviations. Official programs take ImageNet's.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__(non_blocking=True)  # copies from pinned memory overlap with computation
        # No buffers: DeepSpeed in half precision rounds every buffer of the model.
        self.mean = torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1)
        self._left_out = Ledger(None)
        self.image_token, self.tokens_per_tile, self.row_multiple, self.group = -1, 0, 1, None  # the model sets them

    def normalize(self, tiles: torch.Tensor) -> torch.Tensor:
        """uint8 ``[T, 3, S, S]`` to float32 ``[T, 3, S, S]``; T may be 0."""
        if tiles.dtype != torch.uint8:
            raise ValueError(f"tiles must be uint8, got {tiles.dtype}: normalization happens here, not in the workers")
        if self.mean.device != tiles.device:
            self.mean, self.std = self.mean.to(tiles.device), self.std.to(tiles.device)
        return (tiles.float() / 255.0 - self.mean) / self.std

    def forward(self, data: dict, training: bool = False) -> dict:
        """Makes the model's inputs of a collated batch; logs samples left out that no `LedgerHook` has taken.

        Args:
            data: The batch of `xtuner_plugins.datasets.collate` or `collate_packed`, on the CPU.
            training: Cut the row where ranks share rows; any other use has rows of its own on each rank.

        Returns:
            ``row``, a `Row`, and ``pixel_values``, float32 ``[T, 3, S, S]``; of a cut row those that this rank encodes.

        Raises:
            ValueError: Image tokens and tiles don't match (names both counts and the samples).
        """
        batch = dict(data)
        self._left_out.take_from(batch)
        row = make_row(batch, self.image_token)
        num_tiles, sources = batch["num_tiles"].tolist(), list(batch.get("sources", ()))
        if "follows" in batch:  # the images of a preference pair are in its prompt, not in the two answers behind it
            num_tiles = [each for tiles in num_tiles for each in (tiles, 0, 0)]
            sources = [source for source in sources for _ in range(3)]
        check_counts(row, num_tiles, self.tokens_per_tile, sources)
        tiles, group = batch["tiles"], self.group if training else None
        row = fill_row(row, math.lcm(self.row_multiple if self.device.type == "cuda" else 1, size_of(group)))
        if group is not None:
            row, tiles = cut(row, tiles, group)
        return {"row": self.moved(row), "pixel_values": self.normalize(self.cast_data(tiles))}

    def moved(self, row: Row) -> Row:
        """A row on the model's device."""
        if self.device.type == "cuda":
            # A copy from pageable memory would wait for the device.
            row = tree_map_only(torch.Tensor, torch.Tensor.pin_memory, row)
        return self.cast_data(row)
