"""The hf format: transformers' own ``InternVLForConditionalGeneration``, which needs no remote code.

It can't express pixel shuffle v1, a select_layer other than the last, or a q/k norm eps other than 1e-6.
"""

from collections.abc import Mapping
from pathlib import Path

from ..families import encoder_family
from . import official, tokenizer_files
from .mapping import KeyMapping, Row
from .reading import CheckpointError, read_json
from .writer import write_json

NAME = "hf"
PROCESSOR_TOKEN = "<video>"
RELEASE = "4.52.0"  # the first transformers with this format
MEDIA = {"image": "<IMG_CONTEXT>\n", "video": PROCESSOR_TOKEN + "\n"}
_NAMED = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
_NAMED |= {"video_token": PROCESSOR_TOKEN}
# Newer releases read the dict, older ones the attributes themselves.
TOKENIZER_FIELDS = {"extra_special_tokens": _NAMED, "processor_class": "InternVLProcessor"}
TOKENIZER_FIELDS |= {"return_token_type_ids": False, **_NAMED}
# official name -> hf name, values unchanged
_SAME = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels norm_type layer_norm_eps "
    "hidden_act attention_dropout initializer_range"
).split()
_VISION_NAMES = dict(zip(_SAME, _SAME, strict=True)) | {
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "dropout": "hidden_dropout_prob",
    "initializer_factor": "layer_scale_init_value",
}

_VIT, _HF_VIT = "vision_model.encoder.layers.{i}.", "vision_tower.encoder.layer.{i}."

# Official <-> transformers' own InternVLForConditionalGeneration, in its names on disk.
KEYS = KeyMapping(
    [
        Row("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
        Row("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
        Row("vision_model.embeddings.patch_embedding.{p}", "vision_tower.embeddings.patch_embeddings.projection.{p}"),
        Row(_VIT + "attn.qkv.{p}", tuple(f"{_HF_VIT}attention.{n}_proj.{{p}}" for n in "qkv")),
        Row(_VIT + "attn.proj.{p}", _HF_VIT + "attention.projection_layer.{p}"),
        Row(_VIT + "attn.q_norm.weight", _HF_VIT + "attention.q_norm.weight"),
        Row(_VIT + "attn.k_norm.weight", _HF_VIT + "attention.k_norm.weight"),
        Row(_VIT + "norm1.{p}", _HF_VIT + "layernorm_before.{p}"),
        Row(_VIT + "norm2.{p}", _HF_VIT + "layernorm_after.{p}"),
        Row(_VIT + "ls1", _HF_VIT + "lambda_1"),
        Row(_VIT + "ls2", _HF_VIT + "lambda_2"),
        Row(_VIT + "mlp.fc1.{p}", _HF_VIT + "mlp.fc1.{p}"),
        Row(_VIT + "mlp.fc2.{p}", _HF_VIT + "mlp.fc2.{p}"),
        Row("mlp1.0.{p}", "multi_modal_projector.layer_norm.{p}"),
        Row("mlp1.1.{p}", "multi_modal_projector.linear_1.{p}"),
        Row("mlp1.3.{p}", "multi_modal_projector.linear_2.{p}"),
        Row("language_model.{rest}", "language_model.{rest}"),
    ],
    "official InternVL",
    "transformers InternVL",
    # Some directories were saved with the model's names in memory.
    prefixes={"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""},
)


def read_config(fields: Mapping, directory: str | Path) -> dict:
    """See ``model_view.py``; the tile limits come from the preprocessor's config."""
    from transformers import InternVLVisionConfig

    vision = InternVLVisionConfig(**fields["vision_config"]).to_dict()  # with what transformers leaves out of the file
    ours = {name: vision[theirs] for name, theirs in _VISION_NAMES.items()}
    ours |= {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "use_flash_attn": False}
    ours |= dict.fromkeys(("attention_dropout", "dropout", "drop_path_rate"), 0.0)
    for key in ("image_size", "patch_size"):
        if len(set(vision[key])) != 1:
            raise CheckpointError(f"tiles and patches must be square, not {vision[key]}")
        ours[key] = vision[key][0]
    limits = read_json(Path(directory) / "preprocessor_config.json", missing={})
    return official.make_config(
        ours,
        fields["text_config"],
        dtype=fields.get("torch_dtype") or fields.get("dtype") or "bfloat16",
        downsample_ratio=fields.get("downsample_ratio", 0.5),
        min_dynamic_patch=limits.get("min_patches", 1),
        max_tiles=limits.get("max_patches", 12),
    )


def write_config(config: Mapping, tokenizer, num_rows: int) -> dict:
    """See ``model_view.py``; the language model keeps its config."""
    vision, projector = config["vision_config"], config.get("projector_type")
    many, other_eps = official.tile_limits(config)[1] > 1, vision.get("layer_norm_eps") != 1e-6
    is_other = not encoder_family(vision).is_intern_vit or projector
    others = {
        "CLIP, SigLIP or another projector than pixel_shuffle_mlp": is_other,
        f"ps_version={config['ps_version']!r} (only 'v2')": config["ps_version"] != "v2",
        f"select_layer={config['select_layer']} (only -1)": config["select_layer"] != -1,
        "use_thumbnail=False, its processor always adds one": many and not config["use_thumbnail"],
        "another eps of the q/k norm than 1e-6": vision.get("qk_normalization") and other_eps,
    }
    official.refuse(NAME, others)
    dtype = config.get("torch_dtype", "bfloat16")
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "transformers_version": RELEASE,
        "downsample_ratio": config["downsample_ratio"],
        "image_seq_length": official.num_image_tokens(config),
        "image_token_id": tokenizer_files.token_id(tokenizer, "<IMG_CONTEXT>"),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "text_config": text_config(config, tokenizer, num_rows),
        "vision_config": {
            **{name: vision[ours] for ours, name in _VISION_NAMES.items() if ours in vision},
            "architectures": ["InternVLVisionModel"],
            "model_type": "internvl_vision",
            "image_size": [vision["image_size"]] * 2,
            "patch_size": [vision["patch_size"]] * 2,
            "projection_dropout": 0.0,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "torch_dtype": dtype,
        },
    }


def text_config(config: Mapping, tokenizer, num_rows: int) -> dict:
    """``text_config`` from official fields; arguments as for ``write_config``."""
    return {
        **config["llm_config"],
        "vocab_size": num_rows,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer_files.stop_token_ids(tokenizer, config["template"])[0],
    }


def write_processor(stage: Path, config: Mapping) -> None:
    """See ``model_view.py``."""
    images = official.pixel_fields(config["force_image_size"]) | {"processor_class": "InternVLProcessor"}
    videos = {**images, "video_processor_type": "InternVLVideoProcessor"}
    low, high = official.tile_limits(config)
    images |= {"crop_to_patches": False, "image_processor_type": "GotOcr2ImageProcessorFast"}
    write_json(stage / "preprocessor_config.json", images | {"min_patches": low, "max_patches": high})
    write_json(stage / "video_preprocessor_config.json", videos)
    length = official.num_image_tokens(config)
    write_json(stage / "processor_config.json", {"image_seq_length": length, "processor_class": "InternVLProcessor"})
