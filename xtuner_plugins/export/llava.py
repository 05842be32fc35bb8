"""The llava format: transformers' own ``LlavaForConditionalGeneration``, which needs no remote code; written, not read.

It holds CLIP or SigLIP, Linear-GELU-Linear and a language model, one tile per image. InternViT, pixel shuffle, the
LayerNorm of InternVL's projector and several tiles are refused. Pixels are normalized with ImageNet's mean and std, as
in training (the tower's own are folded into its weights); ``preprocessor_config.json`` says so. An image is
``<img><image></img>`` in the text, as in training, with a token ``<image>`` that is added after all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..families import EncoderFamily, encoder_family
from ..hub.conversation import Conversation
from ..weights import official, tokenizer_files
from ..weights.hf import text_config
from ..weights.mapping import KeyMapping, Row
from ..weights.reading import CheckpointError
from ..weights.writer import write_json

NAME = "llava"
PROCESSOR_TOKEN = "<image>"
RELEASE = "4.49.0"  # the first transformers that reads all fields of this format

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


def keys(fields: Mapping) -> KeyMapping:
    """See ``weights/model_view.py``."""
    return KEYS


def check_expressible(config: Mapping) -> EncoderFamily:
    """The encoder's row, if the format can express this official config.

    Raises:
        CheckpointError: it can't; the message names the setting.
    """
    family = encoder_family(config["vision_config"])
    reason = None
    if family.llava is None:
        reason = f"the vision tower {config['vision_config'].get('model_type')} (only CLIP and SigLIP)"
    elif config.get("projector_type") != "mlp":
        reason = "pixel shuffle and the projector's LayerNorm (only projector_type mlp)"
    elif official.tile_limits(config)[1] != 1:
        reason = f"up to {config['max_dynamic_patch']} tiles per image (only max_dynamic_patch 1)"
    if reason:
        raise CheckpointError(f"the llava format can't express {reason}; export with --format official")
    return family


def write_config(config: Mapping, tokenizer, num_rows: int) -> dict:
    """See ``weights/model_view.py``."""
    family = check_expressible(config)
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


def chat_template(tokenizer, conversation: Conversation) -> str:
    """See ``weights/model_view.py``."""
    return tokenizer_files.processor_template(conversation, image="<img>" + PROCESSOR_TOKEN + "</img>\n", video=None)


def write_files(stage: Path, config: Mapping, tokenizer) -> None:
    """See ``weights/model_view.py``: tokenizer, processor, chat template and generation config."""
    family = check_expressible(config)
    template = chat_template(tokenizer, tokenizer_files.conversation_of(config))
    tokenizer_files.save_tokenizer(tokenizer, stage, template, processor=True, processor_class="LlavaProcessor")
    size = config["force_image_size"]
    crop = {"do_center_crop": False, "crop_size": {"height": size, "width": size}}
    names = {"image_processor_type": family.llava.image_processor, "processor_class": "LlavaProcessor"}
    write_json(stage / "preprocessor_config.json", names | official.pixel_fields(size) | crop)
    write_json(
        stage / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "patch_size": config["vision_config"]["patch_size"],
            "vision_feature_select_strategy": family.llava.feature_strategy,
            "num_additional_image_tokens": family.llava.class_tokens,
            "image_token": PROCESSOR_TOKEN,
        },
    )
    tokenizer_files.write_generation_config(stage, tokenizer, config, RELEASE)
