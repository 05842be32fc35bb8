"""The official format: ``InternVLChatModel``, whose code is in the directory.

A directory with InternLM2 holds InternLM2's names and code; here it runs as Llama. It is exported as InternLM2.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

from ..families import llm_family
from ..hub.constants import IMAGENET_MEAN, IMAGENET_STD, PROJECTOR_TYPES, token_grid
from . import internlm2, tokenizer_files
from .mapping import KeyMapping, inside
from .tokenizer_files import chat_template
from .writer import write_json

NAME = "official"
PROCESSOR_TOKEN = None
# If no release is named, transformers 4.57 takes any tokenizer for Mistral's and warns of wrong ids; its advice would
# make them wrong.
RELEASE = "4.37.2"
AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}


def detect(fields: Mapping) -> bool:
    """See ``model_view.py``."""
    return all(isinstance(fields.get(part), Mapping) for part in ("vision_config", "llm_config"))


def holds_internlm2(fields: Mapping) -> bool:
    """Whether the language model is InternLM2; all others run under their own names."""
    return fields["llm_config"].get("model_type") == "internlm2"


def keys(fields: Mapping) -> KeyMapping | None:
    """See ``model_view.py``."""
    return inside(internlm2.keys(fields["llm_config"])) if holds_internlm2(fields) else None


def read_config(fields: Mapping, directory: str | Path) -> dict:
    """See ``model_view.py``; missing fields get the defaults of the config classes, which are the official ones."""
    from ..hub import InternVisionConfig, InternVLChatConfig

    vision = dict(fields["vision_config"])
    if vision.get("model_type") in (None, InternVisionConfig.model_type):
        vision = {**_defaults(InternVisionConfig), **vision}
    complete = {**_defaults(InternVLChatConfig), **fields, "vision_config": vision}
    if holds_internlm2(fields):
        complete["llm_config"] = internlm2.read_config(fields["llm_config"])
    if complete["force_image_size"] is None:
        complete["force_image_size"] = vision.get("image_size")
    return complete


def _defaults(config_class: type) -> dict:
    """Arguments of a config class that have a plain default."""
    parameters = inspect.signature(config_class.__init__).parameters.values()
    others = ("vision_config", "llm_config", "projector_type")
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in others}


def make_config(
    vision: Mapping,
    llm: Mapping,
    *,
    dtype: str,
    template: str | None = None,
    projector_type: str = "pixel_shuffle_mlp",
    select_layer: int = -1,
    downsample_ratio: float = 0.5,
    min_tiles: int = 1,
    max_tiles: int = 12,
) -> dict:
    """A ``config.json`` with every field that any consumer reads, none left to class defaults.

    Args:
        vision: ``vision_config``.
        llm: ``llm_config`` of a class in transformers.
        dtype: of the stored weights.
        template: conversation template; None takes the language model's own.
        projector_type: ``pixel_shuffle_mlp``, ``mlp`` (merges no patches) or ``bilinear_mlp``.
        select_layer: vision layer whose output is used.
        downsample_ratio: of pixel shuffle and bilinear reduction.
        min_tiles: fewest tiles per image.
        max_tiles: most tiles per image, thumbnail not counted.
    """
    plain = projector_type != PROJECTOR_TYPES[0]
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": dict(AUTO_MAP),
        "model_type": "internvl_chat",
        "template": template or llm_family(llm).template,
        "select_layer": select_layer,
        "ps_version": "v2",
        **({"projector_type": projector_type} if plain else {}),
        "downsample_ratio": 1.0 if projector_type == "mlp" else downsample_ratio,
        "force_image_size": vision["image_size"],
        "dynamic_image_size": True,
        "use_thumbnail": max_tiles > 1 if plain else True,
        "min_dynamic_patch": min_tiles,
        "max_dynamic_patch": max_tiles,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "pad2square": False,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "hidden_size": llm.get("hidden_size"),
        "image_fold": None,
        "output_attentions": False,
        "transformers_version": RELEASE,
        "llm_config": {
            **{key: value for key, value in sorted(llm.items()) if key != "dtype"},
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
        },
        "vision_config": {**dict(sorted(vision.items())), "torch_dtype": dtype},
    }


def write_config(config: Mapping, tokenizer, num_rows: int) -> dict:
    """See ``model_view.py``; ``auto_map`` names our code."""
    llm = {**config["llm_config"], "vocab_size": num_rows}
    if llm.get("pad_token_id") is None:
        llm["pad_token_id"] = tokenizer.pad_token_id
    return {**config, "auto_map": dict(AUTO_MAP), "llm_config": llm}


def write_files(stage: Path, config: Mapping, tokenizer) -> None:
    """See ``model_view.py``: tokenizer with chat template, generation and preprocessor configs."""
    tokenizer_files.save_tokenizer(tokenizer, stage, chat_template(tokenizer, tokenizer_files.conversation_of(config)))
    tokenizer_files.write_generation_config(stage, tokenizer, config, RELEASE)
    size = config["force_image_size"]
    clip = {"crop_size": size, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor", "size": size}
    named = ("do_normalize", "do_resize", "image_mean", "image_std", "resample")
    pixels = {key: value for key, value in pixel_fields(size).items() if key in named}
    write_json(stage / "preprocessor_config.json", clip | pixels)


def pixel_fields(size: int) -> dict:
    """What image processors do to an image: RGB, ``size`` x ``size`` by bicubic resampling, ImageNet's mean and std."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
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
