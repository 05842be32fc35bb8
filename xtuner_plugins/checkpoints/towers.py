"""Vision towers for the assembly: InternViT, and a row for each tower of transformers; how directories are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xtuner_plugins.checkpoints import mappings
from xtuner_plugins.checkpoints.families import VISION_FIELDS
from xtuner_plugins.checkpoints.reader import CheckpointError, open_weights, read_json
from xtuner_plugins.checkpoints.tensors import LazyTensor

PREFIX = "vision_model."  # of the tower inside our model; its own names begin with `vision_model.` again
_NOT_STORED = ("embeddings.position_ids",)  # a buffer that old releases saved

_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
    "num_channels", "hidden_act", "layer_norm_eps",
)  # fmt: skip


@dataclass
class VisionPart:
    """A vision tower, read but not loaded.

    Attributes:
        config: its ``vision_config``.
        tensors: under ``vision_model.*``.
        select_layer: layer whose output is used, relative to what ``tensors`` holds.
        normalization: (mean, std) that it was trained with and that isn't folded in yet; None for ImageNet's.
        projector_type: what goes with it when none is named.
    """

    config: dict
    tensors: dict[str, LazyTensor]
    select_layer: int = -1
    normalization: tuple[list[float], list[float]] | None = None
    projector_type: str = "pixel_shuffle_mlp"


@dataclass(frozen=True)
class TowerFamily:
    """A vision tower that transformers has a class for.

    Attributes:
        model_type: of its vision config.
        whole_type: ``model_type`` of the two-sided model (picture and text) that it belongs to.
        architecture: its class.
        image_mean: that its releases were trained with, where the directory doesn't say.
        image_std: likewise.
        select_layer: layer whose output is used when none is named (LLaVA's choice).
        class_tokens: tokens before the patches, which are dropped.
        feature_strategy: what LLaVA's config calls that.
        image_processor: the class that its LLaVA form names.
        fixed: config fields that are always written as given here.
    """

    model_type: str
    whole_type: str
    architecture: str
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    select_layer: int
    class_tokens: int
    feature_strategy: str
    image_processor: str
    fixed: tuple[tuple[str, object], ...] = ()


TOWER_FAMILIES: dict[str, TowerFamily] = {
    row.model_type: row
    for row in (
        TowerFamily(
            "clip_vision_model", "clip", "CLIPVisionModel",
            (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711),
            select_layer=-2, class_tokens=1, feature_strategy="default", image_processor="CLIPImageProcessor",
        ),
        TowerFamily(
            "siglip_vision_model", "siglip", "SiglipVisionModel", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5),
            select_layer=-2, class_tokens=0, feature_strategy="full", image_processor="SiglipImageProcessor",
            fixed=(("vision_use_head", False),),
        ),
    )
}  # fmt: skip


def tower_family(config: Mapping) -> TowerFamily | None:
    """The row of a ``config.json``, of a bare tower or of a whole CLIP or SigLIP; None for anything else."""
    for row in TOWER_FAMILIES.values():
        if config.get("model_type") in (row.model_type, row.whole_type):
            return row
    return None


def is_transformers_tower(vision_config: Mapping) -> bool:
    """Whether an official directory's ``vision_config`` is one of these, not an InternViT."""
    return vision_config.get("model_type") in TOWER_FAMILIES


def read_vision(directory: Path, *, select_layer: int | None = None) -> VisionPart:
    """A vision tower from a standalone, a whole CLIP or SigLIP, or an official directory.

    Raises:
        CheckpointError: no tower that is known.
    """
    config = read_json(directory / "config.json")
    official = "vision_config" in config and "llm_config" in config
    tower = config["vision_config"] if official else config
    family = tower_family(tower)
    if family is not None:
        return _read_transformers_tower(directory, family, tower if official else None, select_layer)
    architectures = tower.get("architectures") or []
    if tower.get("model_type") != "intern_vit_6b" and "InternVisionModel" not in architectures:
        raise CheckpointError(
            f"vision tower: {directory} is not an InternViT, CLIP or SigLIP (model_type {tower.get('model_type')!r}, "
            f"architectures {architectures})"
        )
    held = open_weights(directory)
    if official or any(k.startswith("vision_model.") for k in held):
        tensors = {k: v for k, v in held.items() if k.startswith("vision_model.")}
    else:
        tensors = mappings.STANDALONE_VISION.to_right(held)
    from xtuner_plugins.hub.configuration_intern_vit import InternVisionConfig

    complete = InternVisionConfig(**tower).to_dict()
    fields = {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b"}
    fields.update({k: complete[k] for k in VISION_FIELDS})
    fields.update(attention_dropout=0.0, dropout=0.0, drop_path_rate=0.0)
    return truncate_tower(VisionPart(fields, tensors), -1 if select_layer is None else select_layer, directory)


def _read_transformers_tower(directory, family, official_config, select_layer) -> VisionPart:
    if official_config is not None:  # its normalisation was folded in when it was assembled
        tensors = {k: v for k, v in open_weights(directory).items() if k.startswith(PREFIX)}
        config, own = dict(official_config), None
    else:
        config, tensors = read_tower(directory, family)
        own = stored_normalization(directory, family)
    select_layer = family.select_layer if select_layer is None else select_layer
    layers = config["num_hidden_layers"]
    if not -layers <= select_layer <= -1:
        raise ValueError(f"select_layer = {select_layer} is outside -1 .. -{layers} for the tower {directory}")
    return VisionPart(config, tensors, select_layer, own, projector_type="mlp")


def truncate_tower(part: VisionPart, select_layer: int, where: Path) -> VisionPart:
    """Leaves out the layers after ``select_layer`` (negative, -1 the last)."""
    layers = part.config["num_hidden_layers"]
    keep = layers + 1 + select_layer
    if select_layer >= 0 or keep < 1:
        raise ValueError(f"select_layer = {select_layer} is outside -1 .. -{layers} for the tower {where}")
    tensors = {}
    for name, tensor in part.tensors.items():
        parts = name.split(".")
        if "layers" in parts and int(parts[parts.index("layers") + 1]) >= keep:
            continue
        tensors[name] = tensor
    return VisionPart({**part.config, "num_hidden_layers": keep}, tensors)


def is_unused(name: str, config: Mapping) -> bool:
    """Whether no feature depends on this tensor (official name): a layer after ``select_layer``, or the final norm."""
    family, parts = tower_family(config["vision_config"]), name.split(".")
    if family is None or not name.startswith(PREFIX):
        return False
    if "post_layernorm" in parts:
        return True
    select_layer, layers = config["select_layer"], config["vision_config"]["num_hidden_layers"]
    used = select_layer if select_layer >= 0 else layers + 1 + select_layer
    return "layers" in parts and int(parts[parts.index("layers") + 1]) >= used


def read_tower(directory: Path, family: TowerFamily) -> tuple[dict, dict[str, LazyTensor]]:
    """Config and tensors (``vision_model.vision_model.*``) of a bare tower or of the one inside a whole model.

    The text side, the projections and SigLIP's pooling head are left out. The final norm and the last layers stay,
    though LLaVA's layer does without them: the ``LlavaForConditionalGeneration`` form wants the whole tower.

    Raises:
        CheckpointError: no vision tower in the directory.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    stored = read_json(directory / "config.json")
    stored = stored.get("vision_config") or stored if stored.get("model_type") == family.whole_type else stored
    stored = {k: v for k, v in stored.items() if k not in ("model_type", "torch_dtype", "dtype")}
    complete = CONFIG_MAPPING[family.model_type](**stored).to_dict()
    config = {"architectures": [family.architecture], "model_type": family.model_type}
    config.update({name: complete[name] for name in _FIELDS})
    config.update(attention_dropout=0.0, **dict(family.fixed))

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
    return config, tensors


def stored_normalization(directory: Path, family: TowerFamily) -> tuple[list[float], list[float]]:
    """(mean, std) from the directory's ``preprocessor_config.json``, else those of the family's releases."""
    path = directory / "preprocessor_config.json"
    fields = read_json(path) if path.is_file() else {}
    mean, std = fields.get("image_mean"), fields.get("image_std")
    if mean is None or std is None:
        return list(family.image_mean), list(family.image_std)
    return list(mean), list(std)
