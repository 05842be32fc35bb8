"""The official format: ``InternVLChatModel``, whose code is in the directory.

A directory with InternLM2 holds InternLM2's names and code; here it runs as Llama. It is exported as InternLM2.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..families import llm_family
from ..hub.constants import IMAGENET_MEAN, IMAGENET_STD, PROJECTOR_TYPES, token_grid
from . import languages
from .errors import CheckpointError
from .mapping import KeyMapping, Row
from .writer import write_json

NAME, PROCESSOR_TOKEN, MEDIA, TOKENIZER_FIELDS = "official", None, None, {}  # see ``model_view.py``
KEYS = KeyMapping([Row("{rest}", "{rest}")], "official InternVL", "official InternVL")  # the names of training
# If no release is named, transformers 4.57 takes any tokenizer for Mistral's and warns of wrong ids; its advice would
# make them wrong.
RELEASE = "4.37.2"
AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}


def holds_internlm2(fields: Mapping) -> bool:
    """Whether the language model is InternLM2; all others run under their own names."""
    return fields["llm_config"].get("model_type") == "internlm2"


def read_config(fields: Mapping, directory: str | Path) -> dict:
    """See ``model_view.py``; missing fields get the defaults of the config classes, which are the official ones."""
    from ..hub.configuration_intern_vit import InternVisionConfig
    from ..hub.configuration_internvl_chat import InternVLChatConfig

    vision = dict(fields["vision_config"])
    if vision.get("model_type") in (None, InternVisionConfig.model_type):
        vision = {**InternVisionConfig.DEFAULTS, **vision}
    complete = {**InternVLChatConfig.DEFAULTS, **fields, "vision_config": vision}
    if holds_internlm2(fields):
        complete["llm_config"] = languages.internlm2_config(fields["llm_config"])
    if complete["force_image_size"] is None:
        complete["force_image_size"] = vision.get("image_size")
    return complete


def make_config(
    vision: Mapping,
    llm: Mapping,
    *,
    dtype: str,
    template: str | None = None,
    projector_type: str = "pixel_shuffle_mlp",
    max_tiles: int = 12,
    **fields: Any,
) -> dict:
    """A ``config.json`` with every field that any consumer reads, none left to class defaults.

    Args:
        vision: ``vision_config``.
        llm: ``llm_config`` of a class in transformers.
        dtype: of the stored weights.
        template: conversation template; None takes the language model's own.
        projector_type: ``pixel_shuffle_mlp``, ``mlp`` (merges no patches) or ``bilinear_mlp``.
        max_tiles: most tiles per image, thumbnail not counted.
        **fields: others of the file's own fields, such as ``select_layer``.
    """
    plain, shared = projector_type != PROJECTOR_TYPES[0], {"tie_word_embeddings": False, "torch_dtype": dtype}
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": dict(AUTO_MAP),
        "model_type": "internvl_chat",
        "template": template or llm_family(llm).template,
        "select_layer": -1,
        "ps_version": "v2",
        **({"projector_type": projector_type} if plain else {}),
        "downsample_ratio": 1.0 if projector_type == "mlp" else 0.5,
        "force_image_size": vision["image_size"],
        "dynamic_image_size": True,
        "use_thumbnail": not plain or max_tiles > 1,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": max_tiles,
        **dict.fromkeys(("use_backbone_lora", "use_llm_lora"), 0),
        "pad2square": False,
        **shared,
        "hidden_size": llm.get("hidden_size"),
        "image_fold": None,
        "output_attentions": False,
        "transformers_version": RELEASE,
        "llm_config": {**{key: value for key, value in sorted(llm.items()) if key != "dtype"}, **shared},
        "vision_config": {**dict(sorted(vision.items())), "torch_dtype": dtype},
        **fields,
    }


def write_config(config: Mapping, tokenizer, num_rows: int) -> dict:
    """See ``model_view.py``."""
    llm = {**config["llm_config"], "vocab_size": num_rows}
    if llm.get("pad_token_id") is None:
        llm["pad_token_id"] = tokenizer.pad_token_id
    return {**config, "llm_config": llm}


def write_processor(stage: Path, config: Mapping) -> None:
    """See ``model_view.py``."""
    size = config["force_image_size"]
    pixels = pixel_fields(size) | {"feature_extractor_type": "CLIPFeatureExtractor", "size": size, "crop_size": size}
    pixels |= {"do_center_crop": True}
    others = ("do_convert_rgb", "do_rescale", "rescale_factor")
    write_json(stage / "preprocessor_config.json", {key: each for key, each in pixels.items() if key not in others})


def pixel_fields(size: int) -> dict:
    """What image processors do to an image: RGB, ``size`` x ``size`` by bicubic resampling, ImageNet's mean and std."""
    return {
        **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"height": size, "width": size},
    }


def tile_limits(config: Mapping) -> tuple[int, int]:
    """Fewest and most tiles per image (thumbnail not counted) of a complete config."""
    most = config["max_dynamic_patch"] if config["dynamic_image_size"] else 1
    return min(config["min_dynamic_patch"], most), most


def num_image_tokens(config: Mapping) -> int:
    """Image tokens per tile."""
    patch_size, ratio = config["vision_config"]["patch_size"], config["downsample_ratio"]
    return token_grid(config["force_image_size"], patch_size, ratio, config.get("projector_type")) ** 2


def refuse(form: str, others: Mapping[str, bool]) -> None:
    """Raises `CheckpointError` for the first property of a model that a format can't express, if it has one."""
    if found := [reason for reason, is_so in others.items() if is_so]:
        raise CheckpointError(f"the {form} format can't express {found[0]}; export with --format official")
