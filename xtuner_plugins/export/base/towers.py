"""Reads the vision tower that an assembly starts from: InternViT, DINOv2, DINOv3, CLIP or SigLIP.

Every program that runs the official format normalizes pixels with ImageNet's mean and std, whatever the tower was
trained with, so a tower's own are folded into its patch convolution. If it expects ``x = (p - m) / s`` and is given
``y = (p - m_in) / s_in``, then ``x = (y s_in + m_in - m) / s``, so per input channel c::

    W'[:, c] = W[:, c] s_in[c] / s[c]          b' = b + sum over c, kernel of W[:, c] (m_in[c] - m[c]) / s[c]

This is exact because the convolution has no padding. CLIP's convolution has no bias; its shift goes into the position
embeddings of the patches, which are added right after the convolution (not into that of the class token).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ...families import EncoderFamily, encoder_family
from ...hub.constants import IMAGENET_MEAN, IMAGENET_STD
from ...weights import allowed
from ...weights.lazy import LazyTensor, MemoryTensor
from ...weights.mapping import KeyMapping, Row
from ...weights.reading import CheckpointError, open_weights, read_json

PREFIX = "vision_model."  # of the tower in our model; names of a CLIP or SigLIP tower itself begin with it, too
# The patch convolution of InternViT, of CLIP and SigLIP, and of DINOv3
_CONVOLUTIONS = [PREFIX + "embeddings.patch_embedding"]
_CONVOLUTIONS += [f"{PREFIX}{PREFIX}embeddings.{name}" for name in ("patch_embedding", "patch_embeddings")]
# A buffer that old releases saved, SigLIP's pooling head, and what DINOv3's training masked patches with
_NOT_STORED = ("vision_model.embeddings.position_ids", "vision_model.head.", "vision_model.embeddings.mask_token")
_DINOV3_LAYER = re.compile(r"^vision_model\.(model\.)?layer\.")
TILE_SIZE = 448  # as InternVL's, for encoders that take any
# DINOv2 has the blocks of InternViT under other names, with separate matrices for query, key and value. Its final norm
# stays behind: features are taken before it, and the projector begins with a norm of its own.
_VIT, _DINO = "encoder.layers.{i}.", "encoder.layer.{i}."
_POSITIONS = "embeddings.position_embedding"
_DINOV2 = KeyMapping(
    [
        Row("embeddings.class_embedding", "embeddings.cls_token"),
        Row(_POSITIONS, "embeddings.position_embeddings"),
        Row("embeddings.patch_embedding.{p}", "embeddings.patch_embeddings.projection.{p}"),
        Row(_VIT + "attn.qkv.{p}", tuple(f"{_DINO}attention.attention.{n}.{{p}}" for n in ("query", "key", "value"))),
        Row(_VIT + "attn.proj.{p}", _DINO + "attention.output.dense.{p}"),
        *(Row(f"{_VIT}ls{n}", f"{_DINO}layer_scale{n}.lambda1") for n in (1, 2)),
        *(Row(f"{_VIT}{name}.{{p}}", f"{_DINO}{name}.{{p}}") for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")),
    ],
    "InternViT",
    "DINOv2",
)


class VisionPart(NamedTuple):
    """A vision tower, read but not loaded.

    Attributes:
        config: its ``vision_config``.
        tensors: under ``vision_model.*``, for pixels normalized with ImageNet's mean and std.
        select_layer: layer whose output is used, relative to the layers in ``tensors``.
    """

    config: dict
    tensors: dict[str, LazyTensor]
    select_layer: int


def read_vision(directory: Path, *, select_layer: int | None = None, tile_size: int | None = None) -> VisionPart:
    """A vision tower from a standalone tower, a whole CLIP or SigLIP model, or an official directory.

    Of a whole model the text encoder, the projections and SigLIP's pooling head are left out. InternViT is cut after
    ``select_layer``; the others keep all layers and the final norm, as the llava format holds the whole tower. The mean
    and std that the directory's ``preprocessor_config.json`` names, or else its family's, are folded in.

    Args:
        directory: of the tower.
        select_layer: as `VisionPart`; None takes the family's.
        tile_size: side of a tile in pixels for DINOv2 and DINOv3, a multiple of two patches; None is `TILE_SIZE`.
            Other towers have theirs.

    Raises:
        UnknownFamilyError: an encoder without a row in ``families``.
        CheckpointError: incomplete weights.
        ValueError: ``select_layer`` is outside, ``tile_size`` isn't the tower's, or as for `fold`.
    """
    stored, where = read_json(directory / "config.json"), f"vision tower {directory}"
    read = _read_dinov2 if stored.get("model_type") == "dinov2" else _read_tower
    fields, tensors = read(directory, stored, tile_size)
    family = encoder_family(fields, where)
    if not any(f"{each}.weight" in tensors for each in _CONVOLUTIONS):
        raise CheckpointError(f"{where} says {family.model_type}, but holds no such weights")
    if "llm_config" not in stored:  # an official directory's tower has ImageNet's
        pixels = read_json(directory / "preprocessor_config.json", missing={})
        own = pixels.get("image_mean"), pixels.get("image_std")
        own = (family.image_mean, family.image_std) if None in own else tuple(map(tuple, own))
        tensors = tensors if own == (IMAGENET_MEAN, IMAGENET_STD) else fold(tensors, *own)
    config = _vision_config(family, fields)
    select_layer, layers = family.select_layer if select_layer is None else select_layer, config["num_hidden_layers"]
    if not -layers <= select_layer <= -1:
        raise ValueError(f"select_layer = {select_layer} is outside -1 .. -{layers} for the tower {directory}")
    if not family.is_intern_vit:
        return VisionPart(config, tensors, select_layer)
    config["num_hidden_layers"] = kept = layers + 1 + select_layer
    return VisionPart(config, {name: each for name, each in tensors.items() if _layer_of(name) < kept}, -1)


def _read_tower(directory: Path, stored: Mapping, tile_size: int | None) -> tuple[dict, dict[str, LazyTensor]]:
    """Config fields and tensors of a directory with this config; arguments and errors as for `read_vision`."""
    where, is_official = f"vision tower {directory}", "llm_config" in stored
    fields = stored["vision_config"] if is_official else stored
    family = encoder_family(fields, where)
    if fields.get("model_type") == family.whole_type:
        fields = {**(fields.get("vision_config") or fields), "model_type": family.model_type}
    fields = allowed.vision_fields(fields, where)
    if family.model_type == "dinov3_vit" and not is_official:
        fields["image_size"] = _tile_size(tile_size, fields.get("patch_size", 16), directory)
    elif tile_size not in (None, own := fields.get("image_size")):
        raise ValueError(f"tile_size = {tile_size}: this tower takes {own} pixels; DINOv2 and DINOv3 take any")
    held = open_weights(directory)
    tensors = {name: tensor for name, tensor in held.items() if name.startswith(PREFIX)}
    tensors = tensors or {PREFIX + name: tensor for name, tensor in held.items()}  # the newest transformers' names
    tensors = {_DINOV3_LAYER.sub("vision_model.encoder.layers.", name): tensor for name, tensor in tensors.items()}
    if family.is_intern_vit or is_official:
        return fields, tensors
    return fields, {PREFIX + name: each for name, each in tensors.items() if not name.startswith(_NOT_STORED)}


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
        raise ValueError(f"image mean {list(mean)} and std {list(std)} must be three numbers, in [0, 1] and (0, 1]")
    own_mean, own_std, given_mean, given_std = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std, IMAGENET_MEAN, IMAGENET_STD)
    )
    convolution = next(each for each in _CONVOLUTIONS if f"{each}.weight" in tensors)
    embeddings, weight = convolution.removesuffix("patch_embedding"), tensors[f"{convolution}.weight"].read().double()
    shift, first = (weight * (given_mean - own_mean) / own_std).sum((1, 2, 3)), 0
    name = f"{convolution}.bias"
    if name not in tensors:
        name, first = f"{embeddings}position_embedding.weight", int(f"{embeddings}class_embedding" in tensors)
    shifted = tensors[name].read().double()
    shifted[first:] += shift  # a bias, or the rows of patches
    result = {f"{convolution}.weight": weight * given_std / own_std, name: shifted}
    return {**tensors, **{name: MemoryTensor(tensor.float()) for name, tensor in result.items()}}


def _tile_size(size: int | None, patch_size: int, directory: Path) -> int:
    """Side of a tile where a tower takes any; `ValueError` for no multiple of two patches, which are joined."""
    if (size := size or TILE_SIZE) % (2 * patch_size):
        raise ValueError(f"tile_size = {size} must be a multiple of {2 * patch_size}: two patches of {directory}")
    return size


def _read_dinov2(directory: Path, stored: Mapping, tile_size: int | None) -> tuple[dict, dict[str, LazyTensor]]:
    """Fields of InternViT's config, and tensors by its names; arguments and errors as for `read_vision`."""
    from transformers import Dinov2Config

    from ...hub.modeling_intern_vit import resized_positions  # imports transformers

    config = Dinov2Config(**{name: value for name, value in stored.items() if name in Dinov2Config().to_dict()})
    if config.use_swiglu_ffn:
        raise CheckpointError(f"vision tower: {directory} has SwiGLU layers, unlike InternViT; take a smaller DINOv2")
    size = _tile_size(tile_size, config.patch_size, directory)
    held = {name.removeprefix("dinov2."): tensor for name, tensor in open_weights(directory).items()}
    held.pop("embeddings.mask_token", None)  # of its training; the final norm and a classifier stay behind, too
    tensors = _DINOV2.to_ours({name: held[name] for name in held if name.startswith(("embeddings.", "encoder."))})
    if _POSITIONS in tensors:
        own, side = tensors[_POSITIONS].read().float(), size // config.patch_size
        tensors[_POSITIONS] = MemoryTensor(resized_positions(own, side, side))
    fields = {
        "model_type": "intern_vit_6b",
        "intermediate_size": int(config.hidden_size * config.mlp_ratio),
        "image_size": size,
        "norm_type": "layer_norm",
        "qk_normalization": False,
    }
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "patch_size", "qkv_bias")
    fields |= {name: getattr(config, name) for name in (*same, "hidden_act", "layer_norm_eps", "initializer_range")}
    return fields, {PREFIX + name: tensor for name, tensor in tensors.items()}


def _vision_config(family: EncoderFamily, fields: Mapping) -> dict:
    """The `vision_config` to write: what a directory names, completed by the encoder's config class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from ...hub.configuration_intern_vit import InternVisionConfig

    make = InternVisionConfig if family.is_intern_vit else CONFIG_MAPPING[family.model_type]
    own = {key: value for key, value in fields.items() if key not in ("model_type", "torch_dtype", "dtype")}
    complete = make(**own).to_dict()
    names = {"architectures": [family.architecture], "model_type": family.model_type}
    return {**names, **{name: complete[name] for name in family.fields}, **dict(family.fixed)}


def _layer_of(name: str) -> int:
    """Index of the encoder layer that a tensor belongs to; -1 for any other tensor."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1


def _num_used(config: Mapping) -> int:
    from ...hub.modeling_intern_vit import num_used_layers

    return num_used_layers(config["select_layer"], config["vision_config"]["num_hidden_layers"])


def is_unused(name: str, config: Mapping) -> bool:
    """Whether no feature depends on this tensor (official name): a layer after ``select_layer``, or the final norm."""
    is_other = name.startswith(PREFIX) and not encoder_family(config["vision_config"]).is_intern_vit
    is_norm = not {"post_layernorm", "norm"}.isdisjoint(name.split("."))
    return is_other and (is_norm or _layer_of(name) >= _num_used(config))


def is_in_last_layers(name: str, config: Mapping, count: int) -> bool:
    """Whether a tensor (official name) is in one of the last ``count`` layers of the tower that features depend on."""
    used = _num_used(config)
    return name.startswith(PREFIX) and used - count <= _layer_of(name) < used
