"""The llava format: transformers' own ``LlavaForConditionalGeneration``, which needs no remote code; written, not read.

It holds CLIP or SigLIP, Linear-GELU-Linear and a language model, one tile per image. InternViT, pixel shuffle, the
LayerNorm of InternVL's projector and several tiles are refused. Pixels are normalized with ImageNet's mean and std, as
in training (the tower's own are folded into its weights); ``preprocessor_config.json`` says so. An image is
``<img><image></img>`` in the text, as in training, with a token ``<image>`` that is added after all others.
"""

from collections.abc import Mapping
from pathlib import Path

from ..families import encoder_family
from ..weights import official, tokenizer_files
from ..weights.hf import text_config
from ..weights.mapping import KeyMapping, Row
from ..weights.writer import write_json

NAME = "llava"
PROCESSOR_TOKEN = "<image>"
RELEASE = "4.49.0"  # the first transformers that reads all fields of this format
MEDIA = {"image": f"<img>{PROCESSOR_TOKEN}</img>\n"}
TOKENIZER_FIELDS = {"processor_class": "LlavaProcessor"}

# CLIP or SigLIP with Linear-GELU-Linear <-> LlavaForConditionalGeneration.
KEYS = KeyMapping(
    [
        Row("vision_model.vision_model.{rest}", "vision_tower.vision_model.{rest}"),
        Row("mlp1.0.{p}", "multi_modal_projector.linear_1.{p}"),
        Row("mlp1.2.{p}", "multi_modal_projector.linear_2.{p}"),
        Row("language_model.{rest}", "language_model.{rest}"),
    ],
    "LLaVA-type",
    "transformers Llava",
)


def write_config(config: Mapping, tokenizer, num_rows: int) -> dict:
    """See ``weights/model_view.py``."""
    family, most = encoder_family(config["vision_config"]), official.tile_limits(config)[1]
    others = {
        f"the vision tower {config['vision_config'].get('model_type')} (only CLIP and SigLIP)": family.llava is None,
        "pixel shuffle and the projector's LayerNorm (only projector_type mlp)": config.get("projector_type") != "mlp",
        f"up to {most} tiles per image (only max_dynamic_patch 1)": most != 1,
    }
    official.refuse(NAME, others)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "transformers_version": RELEASE,
        "image_token_index": tokenizer_files.token_id(tokenizer, PROCESSOR_TOKEN),
        "image_seq_length": official.num_image_tokens(config),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": config["select_layer"],
        "vision_feature_select_strategy": family.llava.feature_strategy,
        "tie_word_embeddings": False,
        "torch_dtype": config.get("torch_dtype", "bfloat16"),
        "text_config": text_config(config, tokenizer, num_rows),
        "vision_config": {**config["vision_config"], **dict(family.fixed)},
    }


def write_processor(stage: Path, config: Mapping) -> None:
    """See ``weights/model_view.py``."""
    names, size = encoder_family(config["vision_config"]).llava, config["force_image_size"]
    crop = {"do_center_crop": False, "crop_size": {"height": size, "width": size}}
    pixels = {"image_processor_type": names.image_processor, **TOKENIZER_FIELDS, **official.pixel_fields(size), **crop}
    write_json(stage / "preprocessor_config.json", pixels)
    fields = {
        "patch_size": config["vision_config"]["patch_size"],
        "vision_feature_select_strategy": names.feature_strategy,
        "num_additional_image_tokens": names.class_tokens,
        "image_token": PROCESSOR_TOKEN,
    }
    write_json(stage / "processor_config.json", {**TOKENIZER_FIELDS, **fields})
