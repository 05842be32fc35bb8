"""Tokens, tiles and supervised tokens of an average sample, file by file."""

import numpy as np

from .dataset import MultimodalDataset
from .plan.budget import DROPPED


def file_figures(dataset: MultimodalDataset) -> list[dict]:
    """Each file as an epoch uses it, from the lengths in the cache.

    Returns:
        dicts with name; samples of an epoch, unusable ones included; seen, the usable samples that the means are of, 0
        without lengths; tokens, tiles and supervised, the means, None where nothing was seen.
    """
    files, is_measured = [], dataset.is_measured()
    for number, (source, pick) in enumerate(zip(dataset.sources, dataset.picks, strict=True)):
        means, rows = dict.fromkeys(("tokens", "tiles", "supervised")), pick[:0]
        if is_measured:
            lengths = dataset.lengths(number)
            tokens, tiles, fates = lengths.lay_out(source.tiling, dataset.budget)
            rows = pick[(fates[pick] < DROPPED) & ~np.isin(pick, list(dataset.rejected[number]))]
            supervised = np.minimum(lengths.supervised, tokens)  # an end that is cut off isn't learned
            columns = zip(means, (tokens, tiles, supervised), strict=True)
            means = {name: float(column[rows].mean()) for name, column in columns} if len(rows) else means
        files.append({"name": source.name, "samples": len(pick), "seen": len(rows), **means})
    return files
