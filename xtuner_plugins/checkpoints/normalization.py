"""Folds a tower's own image mean and deviation into its patch convolution.

Every program that runs the official format normalises pixels with ImageNet's numbers, whatever the tower was trained
with. With ``x = (p - m) / s`` what the tower expects and ``y = (p - m_in) / s_in`` what it is given,
``x = (y s_in + m_in - m) / s``, so per input channel c::

    W'[:, c] = W[:, c] s_in[c] / s[c]          b' = b + sum over c, kernel of W[:, c] (m_in[c] - m[c]) / s[c]

This is exact because the convolution has no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from xtuner_plugins.checkpoints.tensors import LazyTensor, MemoryTensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH = "vision_model.embeddings.patch_embedding."


def fold(tensors: Mapping[str, LazyTensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, LazyTensor]:
    """The tower's tensors for pixels normalised with ImageNet's numbers; computed in float64, held in float32.

    Args:
        tensors: ``vision_model.*``, with a patch convolution ``[D, 3, P, P]`` and its bias.
        mean: of each channel, in [0, 1], that the tower was trained with.
        std: of each channel, positive.

    Raises:
        ValueError: not three channels, or numbers out of range.
    """
    if len(mean) != 3 or len(std) != 3 or not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        raise ValueError(
            f"image mean {list(mean)} and std {list(std)} must be three numbers each, in [0, 1] and (0, 1]"
        )
    own_mean, own_std, given_mean, given_std = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std, IMAGENET_MEAN, IMAGENET_STD)
    )
    weight = tensors[PATCH + "weight"].read().double()
    bias = tensors[PATCH + "bias"].read().double()
    result = dict(tensors)
    result[PATCH + "weight"] = MemoryTensor((weight * given_std / own_std).float())
    shift = (weight * (given_mean - own_mean) / own_std).sum((1, 2, 3))
    result[PATCH + "bias"] = MemoryTensor((bias + shift).float())
    return result
