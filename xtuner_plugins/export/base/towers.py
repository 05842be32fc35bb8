"""Reads the vision tower that an assembly starts from: InternViT, DINOv2, CLIP or SigLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...families import EncoderFamily, encoder_family
from ...hub.constants import IMAGENET_MEAN, IMAGENET_STD
from ...weights import allowed
from ...weights.lazy import LazyTensor
from ...weights.reading import CheckpointError, open_weights, read_json
from . import dinov2

PREFIX = "vision_model."  # of the tower in our model; names of a CLIP or SigLIP tower itself begin with it, too
_NOT_STORED = ("embeddings.position_ids",)  # a buffer that old releases saved


@dataclass
class VisionPart:
    """A vision tower, read but not loaded.

    Attributes:
        config: its ``vision_config``.
        tensors: under ``vision_model.*``.
        select_layer: layer whose output is used, relative to the layers in ``tensors``.
        normalization: (mean, std) that it was trained with, not folded in yet; None for ImageNet's.
        projector_type: default projector.
    """

    config: dict
    tensors: dict[str, LazyTensor]
    select_layer: int = -1
    normalization: tuple[Sequence[float], Sequence[float]] | None = None
    projector_type: str = "pixel_shuffle_mlp"


def read_vision(directory: Path, *, select_layer: int | None = None, tile_size: int | None = None) -> VisionPart:
    """A vision tower from a standalone tower, a whole CLIP or SigLIP model, or an official directory.

    Args:
        directory: of the tower.
        select_layer: as `VisionPart`; None takes the family's.
        tile_size: as `dinov2.read_dinov2`; other towers have theirs.

    Raises:
        UnknownFamilyError: an encoder without a row in ``families``.
        CheckpointError: incomplete weights.
        ValueError: ``select_layer`` is outside, or ``tile_size`` isn't the tower's.
    """
    config = read_json(directory / "config.json")
    if config.get("model_type") == dinov2.MODEL_TYPE:
        tower, held = dinov2.read_dinov2(directory, tile_size)
        part = _intern_vit(directory, tower, {PREFIX + name: tensor for name, tensor in held.items()}, select_layer)
        return replace(part, normalization=_normalization(directory, IMAGENET_MEAN, IMAGENET_STD))
    official = "vision_config" in config and "llm_config" in config
    tower = config["vision_config"] if official else config
    family = encoder_family(tower, f"vision tower {directory}")
    if tile_size not in (None, tower.get("image_size")):
        raise ValueError(
            f"tile_size = {tile_size}: DINOv2 alone takes another size than {tower.get('image_size')} pixels"
        )
    if tower.get("model_type") != family.whole_type:
        tower = allowed.vision_fields(tower, f"vision tower {directory}")
    if not family.is_intern_vit:
        return _read_transformers_tower(directory, family, tower if official else None, select_layer)
    held = open_weights(directory)
    if official or any(k.startswith("vision_model.") for k in held):
        tensors = {k: v for k, v in held.items() if k.startswith("vision_model.")}
    else:
        tensors = {PREFIX + k: v for k, v in held.items()}
    return _intern_vit(directory, tower, tensors, select_layer)


def _intern_vit(
    directory: Path, fields: Mapping, tensors: dict[str, LazyTensor], select_layer: int | None
) -> VisionPart:
    """The part of an InternViT, cut after ``select_layer``."""
    from ...hub import InternVisionConfig

    family = encoder_family({"model_type": InternVisionConfig.model_type})
    config = _vision_config(family, InternVisionConfig(**fields).to_dict())
    part = VisionPart(config, tensors, projector_type=family.projector_type)
    return truncate_tower(part, family.select_layer if select_layer is None else select_layer, directory)


def _vision_config(family: EncoderFamily, complete: Mapping) -> dict:
    """The `vision_config` to write, from every field of the encoder's config class."""
    fields = {"architectures": [family.architecture], "model_type": family.model_type}
    return {**fields, **{name: complete[name] for name in family.fields}, **dict(family.fixed)}


def _read_transformers_tower(directory, family, official_config, select_layer) -> VisionPart:
    normalization = None
    if official_config is not None:  # its normalization was folded in when it was assembled
        tensors = {k: v for k, v in open_weights(directory).items() if k.startswith(PREFIX)}
        config = dict(official_config)
    else:
        config, tensors = read_tower(directory, family)
        normalization = _normalization(directory, family.image_mean, family.image_std)
    select_layer = family.select_layer if select_layer is None else select_layer
    layers = config["num_hidden_layers"]
    if not -layers <= select_layer <= -1:
        raise ValueError(f"select_layer = {select_layer} is outside -1 .. -{layers} for the tower {directory}")
    return VisionPart(config, tensors, select_layer, normalization, family.projector_type)


def _normalization(directory: Path, *default: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The image mean and std that a directory names, or the default."""
    fields = read_json(directory / "preprocessor_config.json", missing={})
    own = fields.get("image_mean"), fields.get("image_std")
    return default if None in own else own


def truncate_tower(part: VisionPart, select_layer: int, where: Path) -> VisionPart:
    """Drops the layers after ``select_layer`` (negative; -1 is the last layer)."""
    layers = part.config["num_hidden_layers"]
    keep = layers + 1 + select_layer
    if select_layer >= 0 or keep < 1:
        raise ValueError(f"select_layer = {select_layer} is outside -1 .. -{layers} for the tower {where}")
    tensors = {name: tensor for name, tensor in part.tensors.items() if _layer_of(name) < keep}
    return replace(part, config={**part.config, "num_hidden_layers": keep}, tensors=tensors)


def _layer_of(name: str) -> int:
    """Index of the encoder layer that a tensor belongs to; -1 for any other tensor."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1


def is_unused(name: str, config: Mapping) -> bool:
    """Whether no feature depends on this tensor (official name): a layer after ``select_layer``, or the final norm."""
    from ...hub.modeling_intern_vit import num_used_layers

    if encoder_family(config["vision_config"]).is_intern_vit or not name.startswith(PREFIX):
        return False
    used = num_used_layers(config["select_layer"], config["vision_config"]["num_hidden_layers"])
    return "post_layernorm" in name.split(".") or _layer_of(name) >= used


def is_in_last_layers(name: str, config: Mapping, count: int) -> bool:
    """Whether a tensor (official name) is in one of the last ``count`` layers of the tower that features depend on."""
    from ...hub.modeling_intern_vit import num_used_layers

    if not name.startswith(PREFIX):
        return False
    used = num_used_layers(config["select_layer"], config["vision_config"]["num_hidden_layers"])
    return used - count <= _layer_of(name) < used


def read_tower(directory: Path, family: EncoderFamily) -> tuple[dict, dict[str, LazyTensor]]:
    """Config and tensors (``vision_model.vision_model.*``) of a bare tower or of the one inside a whole model.

    The text encoder, the projections and SigLIP's pooling head are left out. The final norm and the last layers stay
    even where ``select_layer`` doesn't use them: the llava format holds the whole tower.

    Raises:
        CheckpointError: no vision tower in the directory.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    stored = read_json(directory / "config.json")
    stored = stored.get("vision_config") or stored if stored.get("model_type") == family.whole_type else stored
    stored = allowed.vision_fields({**stored, "model_type": family.model_type}, f"vision tower {directory}")
    stored = {k: v for k, v in stored.items() if k not in ("model_type", "torch_dtype", "dtype")}
    complete = CONFIG_MAPPING[family.model_type](**stored).to_dict()
    held = open_weights(directory)
    if not any(name.startswith("vision_model.") for name in held):  # what the newest transformers saves
        held = {f"vision_model.{name}": tensor for name, tensor in held.items()}
    dropped = tuple(f"vision_model.{name}" for name in (*_NOT_STORED, "head."))
    tensors = {
        PREFIX + name: tensor
        for name, tensor in held.items()
        if name.startswith("vision_model.") and not name.startswith(dropped)
    }
    if PREFIX + "vision_model.embeddings.patch_embedding.weight" not in tensors:
        raise CheckpointError(f"vision tower: {directory} says {family.model_type}, but holds no such weights")
    return _vision_config(family, complete), tensors
