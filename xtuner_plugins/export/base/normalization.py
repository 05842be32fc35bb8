"""Folds a tower's own image mean and std into its patch convolution.

Every program that runs the official format normalizes pixels with ImageNet's mean and std, whatever the tower was
trained with. If the tower expects ``x = (p - m) / s`` and is given ``y = (p - m_in) / s_in``, then
``x = (y s_in + m_in - m) / s``, so per input channel c::

    W'[:, c] = W[:, c] s_in[c] / s[c]          b' = b + sum over c, kernel of W[:, c] (m_in[c] - m[c]) / s[c]

This is exact because the convolution has no padding. CLIP's convolution has no bias; its shift goes into the position
embeddings of the patches, which are added right after the convolution (not into that of the class token).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...hub.constants import IMAGENET_MEAN, IMAGENET_STD
from ...weights.lazy import LazyTensor, MemoryTensor

# The patch convolution of InternViT, of CLIP and SigLIP, and of DINOv3
CONVOLUTIONS = (
    "vision_model.embeddings.patch_embedding",
    "vision_model.vision_model.embeddings.patch_embedding",
    "vision_model.vision_model.embeddings.patch_embeddings",
)


def fold(tensors: Mapping[str, LazyTensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, LazyTensor]:
    """The tower's tensors for pixels normalized with ImageNet's mean and std; computed in float64, stored in float32.

    Args:
        tensors: ``vision_model.*``, with a patch convolution ``[D, 3, P, P]`` and its bias or position embeddings.
        mean: per channel, in [0, 1], that the tower was trained with.
        std: per channel, in (0, 1].

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
    convolution = next(each for each in CONVOLUTIONS if f"{each}.weight" in tensors)
    name = f"{convolution}.weight"
    weight = tensors[name].read().double()
    result = dict(tensors)
    result[name] = MemoryTensor((weight * given_std / own_std).float())
    shift = (weight * (given_mean - own_mean) / own_std).sum((1, 2, 3))
    name = f"{convolution}.bias"
    if name in tensors:
        result[name] = MemoryTensor((tensors[name].read().double() + shift).float())
        return result
    embeddings = convolution.removesuffix("patch_embedding")
    name = f"{embeddings}position_embedding.weight"
    positions = tensors[name].read().double()
    positions[1 if f"{embeddings}class_embedding" in tensors else 0 :] += shift
    result[name] = MemoryTensor(positions.float())
    return result
