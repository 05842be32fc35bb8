"""The LLaVA form: transformers' own ``LlavaForConditionalGeneration``, which needs no remote code.

It holds CLIP or SigLIP, Linear-GELU-Linear and a language model, one tile a picture. What it can't say is refused:
InternViT, pixel shuffle, the LayerNorm of InternVL's projector, tiles. Pixels stay normalised with ImageNet's numbers,
as in training (the tower's own are folded into its weights), and ``preprocessor_config.json`` says so. A picture stands
in the text as ``<img><image></img>``, as it was trained, with a token ``<image>`` that is added after all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xtuner_plugins.checkpoints import native, tokenizer_files
from xtuner_plugins.checkpoints.reader import CheckpointError, read_json
from xtuner_plugins.checkpoints.writer import TRANSFORMERS, write_json
from xtuner_plugins.families import EncoderFamily, encoder_family, llm_family
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD

IMAGE_TOKEN = "<image>"
PICTURE = "<img>" + IMAGE_TOKEN + "</img>\n"


def check_expressible(config: Mapping) -> EncoderFamily:
    """The encoder's row, when the form can say everything that this official config says.

    Raises:
        CheckpointError: it can't; the message names the setting.
    """
    family = encoder_family(config["vision_config"])
    reason = None
    if family.llava is None:
        reason = f"the vision tower {config['vision_config'].get('model_type')} (only CLIP and SigLIP)"
    elif config.get("projector_type") != "mlp":
        reason = "pixel shuffle and the projector's LayerNorm (only projector_type mlp)"
    elif native.tile_limits(config)[1] != 1:
        reason = f"up to {config['max_dynamic_patch']} tiles per image (only max_dynamic_patch 1)"
    if reason:
        raise CheckpointError(f"the LLaVA form can't express {reason}; export with --format official")
    return family


RELEASE = "4.49.0"  # the first of transformers that reads all of the form's fields


def to_llava_config(config: Mapping, image_token_id: int, vocab_size: int) -> dict:
    """``config.json`` of the LLaVA form from official fields.

    Raises:
        CheckpointError: a setting that the form can't express.
    """
    family = check_expressible(config)
    text = {k: v for k, v in config["llm_config"].items() if k not in ("auto_map", "_name_or_path")}
    text.update(vocab_size=vocab_size, tie_word_embeddings=False)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "transformers_version": RELEASE,
        "image_token_index": image_token_id,
        "image_seq_length": num_image_tokens(config),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": config["select_layer"],
        "vision_feature_select_strategy": family.llava.feature_strategy,
        "tie_word_embeddings": False,
        "torch_dtype": config.get("torch_dtype", "bfloat16"),
        "text_config": text,
        "vision_config": {**config["vision_config"], **dict(family.fixed)},
    }


def to_official_config(fields: Mapping, directory: str | Path) -> dict:
    """Official fields from a LLaVA directory's config; the conversation template is not in it.

    Raises:
        CheckpointError: another tower, projector or feature strategy, or pixels normalised with other numbers than
            ImageNet's.
    """
    vision, text = dict(fields["vision_config"]), dict(fields["text_config"])
    family = encoder_family(vision, f"{directory}: vision_config")
    wanted = {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}
    if family.llava is not None:
        wanted["vision_feature_select_strategy"] = family.llava.feature_strategy
    wrong = {key: fields.get(key, value) for key, value in wanted.items() if fields.get(key, value) != value}
    preprocessor = Path(directory) / "preprocessor_config.json"
    pixels = read_json(preprocessor) if preprocessor.is_file() else {}
    for key, value in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        if list(pixels.get(key, ())) != list(value):
            wrong[key] = pixels.get(key)
    layer = fields.get("vision_feature_layer", -2)
    if family.llava is None or wrong or not isinstance(layer, int):
        raise CheckpointError(
            f"{directory}: this LLaVA model (tower {vision.get('model_type')}, vision_feature_layer {layer}"
            + "".join(f", {key} {value}" for key, value in wrong.items())
            + ") has no official form; give its tower and language model to tools/build_base_model.py instead"
        )
    dtype = fields.get("torch_dtype") or fields.get("dtype") or "bfloat16"
    text.update(tie_word_embeddings=False, torch_dtype=dtype)
    text.pop("dtype", None)
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
        "template": llm_family(text).template,
        "select_layer": layer, "ps_version": "v2", "projector_type": "mlp", "downsample_ratio": 1.0,
        "force_image_size": vision["image_size"], "dynamic_image_size": True, "use_thumbnail": False,
        "min_dynamic_patch": 1, "max_dynamic_patch": 1, "use_backbone_lora": 0, "use_llm_lora": 0, "pad2square": False,
        "tie_word_embeddings": False, "torch_dtype": dtype, "hidden_size": text.get("hidden_size"), "image_fold": None,
        "output_attentions": False, "transformers_version": TRANSFORMERS, "llm_config": text,
        "vision_config": {**vision, "torch_dtype": dtype},
    }  # fmt: skip


def num_image_tokens(config: Mapping) -> int:
    """Patches of a picture, each of which becomes a token."""
    return (config["force_image_size"] // config["vision_config"]["patch_size"]) ** 2


def add_image_token(tokenizer) -> int:
    """Gives the tokenizer a token ``<image>`` where it has none; returns its id."""
    from transformers import AddedToken

    if tokenizer_files.token_id(tokenizer, IMAGE_TOKEN) is None:
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)
    return tokenizer_files.token_id(tokenizer, IMAGE_TOKEN)


def write_processor_files(stage: Path, tokenizer, config: Mapping, conversation) -> None:
    """Tokenizer (with ``<image>``), processor, image processor and chat template."""
    family = check_expressible(config)
    template = native.processor_template(conversation, image=PICTURE, video=None)
    tokenizer_files.save_tokenizer(tokenizer, stage, template=template)
    fields = read_json(stage / "tokenizer_config.json")
    write_json(stage / "tokenizer_config.json", {**fields, "processor_class": "LlavaProcessor"})
    (stage / "chat_template.jinja").write_text(template, encoding="utf-8")
    side = {"height": config["force_image_size"], "width": config["force_image_size"]}
    write_json(stage / "preprocessor_config.json", {
        "image_processor_type": family.llava.image_processor, "processor_class": "LlavaProcessor",
        "do_convert_rgb": True, "do_resize": True, "size": side, "resample": 3,
        "do_center_crop": False, "crop_size": side, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD),
    })  # fmt: skip
    write_json(stage / "processor_config.json", {
        "processor_class": "LlavaProcessor", "patch_size": config["vision_config"]["patch_size"],
        "vision_feature_select_strategy": family.llava.feature_strategy,
        "num_additional_image_tokens": family.llava.class_tokens, "image_token": IMAGE_TOKEN,
    })  # fmt: skip
