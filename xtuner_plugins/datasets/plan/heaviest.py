"""The micro-batch of a plan that takes the most memory."""

from collections.abc import Sequence

import numpy as np

from ..bad_samples import FILLER_INDEX


def heaviest(batches: Sequence[Sequence[int]], tokens: np.ndarray, tiles: np.ndarray) -> Sequence[int]:
    """The batch with the most tokens; of several, the one with the most tiles.

    The tokens of a batch are the sum over its samples, packed or not: padding is removed before the model runs.

    Args:
        batches: Indices of samples, never empty; fillers weigh nothing.
        tokens, tiles: int `[samples]`, of every sample of the dataset.
    """
    flat = np.concatenate([np.asarray(batch, np.int64) for batch in batches])
    starts = np.cumsum([0] + [len(batch) for batch in batches[:-1]])
    is_filler = flat == FILLER_INDEX
    place = np.where(is_filler, 0, flat)
    sums = [
        np.add.reduceat(np.where(is_filler, 0, column[place].astype(np.int64)), starts) for column in (tokens, tiles)
    ]
    return batches[int(np.lexsort(sums[::-1])[-1])]
