"""The ``-hf`` form: transformers' own ``InternVLForConditionalGeneration``, which needs no remote code.

What it can't say: pixel shuffle v1, a select_layer other than the last, a norm eps of q and k other than 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xtuner_plugins.checkpoints import tokenizer_files
from xtuner_plugins.checkpoints.reader import CheckpointError, read_json
from xtuner_plugins.checkpoints.tensors import Joined, LazyTensor, MemoryTensor
from xtuner_plugins.checkpoints.writer import TRANSFORMERS, write_json
from xtuner_plugins.families import encoder_family, llm_family
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD

VIDEO_TOKEN = "<video>"
# official name -> native name, values unchanged
_VISION_NAMES = {
    "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads", "num_channels": "num_channels", "norm_type": "norm_type",
    "layer_norm_eps": "layer_norm_eps", "hidden_act": "hidden_act", "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm", "attention_dropout": "attention_dropout", "dropout": "hidden_dropout_prob",
    "initializer_range": "initializer_range", "initializer_factor": "layer_scale_init_value",
}  # fmt: skip
RELEASE = "4.52.0"  # the first of transformers with the form


def to_native_config(config: Mapping, image_token_id: int, vocab_size: int) -> dict:
    """``config.json`` of the ``-hf`` form from official fields (LLM already one of transformers' own).

    Raises:
        CheckpointError: a setting that the form can't express.
    """
    vision, llm = config["vision_config"], config["llm_config"]
    if not encoder_family(vision).is_intern_vit or config.get("projector_type") == "mlp":
        raise CheckpointError(
            "the -hf form can't express CLIP, SigLIP or projector_type mlp; export with --format official or llava"
        )
    for key, value, want in (
        ("ps_version", config.get("ps_version", "v1"), "v2"),
        ("select_layer", config.get("select_layer", -1), -1),
    ):
        if value != want:
            raise CheckpointError(
                f"the -hf form can't express {key}={value!r} (only {want!r}); export with --format official"
            )
    if not config["use_thumbnail"] and tile_limits(config)[1] > 1:
        raise CheckpointError(
            "the -hf form can't express use_thumbnail=False, its processor always adds one; use --format official"
        )
    if vision.get("qk_normalization") and vision.get("layer_norm_eps") != 1e-6:
        raise CheckpointError("the -hf form can't express a q/k norm with another eps than 1e-6; use --format official")
    size, patch = vision["image_size"], vision["patch_size"]
    grid = size // patch
    dtype = config.get("torch_dtype", "bfloat16")
    fields = {native: vision[official] for official, native in _VISION_NAMES.items() if official in vision}
    text = {k: v for k, v in llm.items() if k not in ("auto_map", "_name_or_path", "attn_implementation")}
    text.update(vocab_size=vocab_size, tie_word_embeddings=False)
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "transformers_version": RELEASE,
        "downsample_ratio": config["downsample_ratio"],
        "image_seq_length": int(grid**2 * config["downsample_ratio"] ** 2),
        "image_token_id": image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "text_config": text,
        "vision_config": {
            **fields, "architectures": ["InternVLVisionModel"], "model_type": "internvl_vision",
            "image_size": [size, size], "patch_size": [patch, patch], "projection_dropout": 0.0,
            "use_absolute_position_embeddings": True, "use_mask_token": False, "use_mean_pooling": True,
            "torch_dtype": dtype,
        },
    }  # fmt: skip


def to_official_config(fields: Mapping, directory: str | Path) -> dict:
    """Official fields from an ``-hf`` directory's config (and preprocessor, for the tile limits)."""
    vision, text = fields["vision_config"], dict(fields["text_config"])
    size, patch = _one(vision["image_size"]), _one(vision["patch_size"])
    ours = {official: vision[native] for official, native in _VISION_NAMES.items() if native in vision}
    # transformers writes only what differs from its own defaults, which are these (the sizes are the 300M's)
    defaults = {"norm_type": "layer_norm", "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": False,
                "qk_normalization": False, "num_channels": 3, "hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "initializer_range": 0.02,
                "initializer_factor": 0.1}  # fmt: skip
    ours = {
        **defaults,
        **ours,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "use_flash_attn": False,
    }
    preprocessor = Path(directory) / "preprocessor_config.json"
    limits = read_json(preprocessor) if preprocessor.is_file() else {}
    dtype = fields.get("torch_dtype") or fields.get("dtype") or "bfloat16"
    text.setdefault("model_type", "qwen2")
    text.update(tie_word_embeddings=False, torch_dtype=dtype)
    text.pop("dtype", None)
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
        "template": llm_family(text).template,
        "select_layer": -1, "ps_version": "v2", "downsample_ratio": fields.get("downsample_ratio", 0.5),
        "force_image_size": size, "dynamic_image_size": True, "use_thumbnail": True,
        "min_dynamic_patch": limits.get("min_patches", 1), "max_dynamic_patch": limits.get("max_patches", 12),
        "use_backbone_lora": 0, "use_llm_lora": 0, "pad2square": False, "tie_word_embeddings": False,
        "torch_dtype": dtype, "hidden_size": text.get("hidden_size"), "image_fold": None, "output_attentions": False,
        "transformers_version": TRANSFORMERS, "llm_config": text,
        "vision_config": {**ours, "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b",
                          "image_size": size, "patch_size": patch, "torch_dtype": dtype},
    }  # fmt: skip


def tile_limits(config: Mapping) -> tuple[int, int]:
    """Fewest and most tiles per image, thumbnail not counted, that a complete official config asks for."""
    most = config["max_dynamic_patch"] if config["dynamic_image_size"] else 1
    return min(config["min_dynamic_patch"], most), most


def _one(value) -> int:
    if isinstance(value, (list, tuple)):
        if len(set(value)) != 1:
            raise CheckpointError(f"tiles and patches must be square, not {list(value)}")
        return int(value[0])
    return int(value)


def disk_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Names as they lie on disk; some saved the names in memory (``model.vision_tower.*``, ``lm_head.weight``)."""
    if not any(name.startswith("model.vision_tower.") for name in tensors):
        return dict(tensors)
    result = {}
    for name, tensor in tensors.items():
        if name.startswith("model.language_model."):
            name = "language_model.model." + name.removeprefix("model.language_model.")
        elif name.startswith("lm_head."):
            name = "language_model." + name
        result[name.removeprefix("model.")] = tensor
    return result


def pad_rows(tensor: LazyTensor, rows: int) -> LazyTensor:
    """A matrix with zero rows below, up to ``rows``."""
    import torch

    if tensor.shape[0] >= rows:
        return tensor
    extra = torch.zeros(rows - tensor.shape[0], *tensor.shape[1:], dtype=tensor.dtype)
    return Joined([tensor, MemoryTensor(extra)], (rows, *tensor.shape[1:]))


def write_processor_files(stage: Path, tokenizer, config: Mapping, conversation) -> int:
    """Tokenizer, processor and chat template of the ``-hf`` form; returns the rows that its tokenizer needs.

    ``<video>``, which the processor insists on, becomes a token of its own after all others.
    """
    from transformers import AddedToken

    if tokenizer_files.token_id(tokenizer, VIDEO_TOKEN) is None:
        tokenizer.add_tokens([AddedToken(VIDEO_TOKEN, normalized=False, special=True)], special_tokens=True)
    template = processor_template(conversation)
    tokenizer_files.save_tokenizer(tokenizer, stage, template=template)
    fields = read_json(stage / "tokenizer_config.json")
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": VIDEO_TOKEN}  # fmt: skip
    # Both ways of saying it: new releases read the dict, and the attributes themselves are read back by older ones.
    fields.update(extra_special_tokens=named, processor_class="InternVLProcessor", return_token_type_ids=False, **named)
    write_json(stage / "tokenizer_config.json", fields)
    (stage / "chat_template.jinja").write_text(template, encoding="utf-8")
    size = config["force_image_size"]
    images = {
        "crop_to_patches": False, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"height": size, "width": size}, "processor_class": "InternVLProcessor",
    }  # fmt: skip
    write_json(stage / "preprocessor_config.json", {
        **images, "image_processor_type": "GotOcr2ImageProcessorFast",
        "min_patches": tile_limits(config)[0], "max_patches": tile_limits(config)[1],
    })  # fmt: skip
    videos = {k: v for k, v in images.items() if k != "crop_to_patches"}
    write_json(stage / "video_preprocessor_config.json", {**videos, "video_processor_type": "InternVLVideoProcessor"})
    grid = size // config["vision_config"]["patch_size"]
    length = int(grid**2 * config["downsample_ratio"] ** 2)
    write_json(stage / "processor_config.json", {"image_seq_length": length, "processor_class": "InternVLProcessor"})
    return tokenizer_files.num_token_rows(tokenizer)


def processor_template(conversation, *, image: str = "<IMG_CONTEXT>\n", video: str | None = VIDEO_TOKEN + "\n") -> str:
    """A processor's chat template: text, image and video parts; the training prompt as the default system.

    Args:
        conversation: from ``get_conv_template``.
        image: what stands for a picture.
        video: what stands for a video; None leaves videos out.
    """
    quote = tokenizer_files.quote
    before, after = conversation.system_template.split("{system_message}")
    user, assistant = (quote(role) for role in conversation.roles)
    end = quote(conversation.sep)
    content = (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ "
        + quote(image)
        + " }}"
        + ("" if video is None else "{% elif part['type'] == 'video' %}{{ " + quote(video) + " }}")
        + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}"
    )
    default = ""
    if conversation.system_message is not None:
        default = "{{ " + quote(before + conversation.system_message + after + conversation.sep) + " }}"
    return "".join(
        [
            "{% if not messages or messages[0]['role'] != 'system' %}" + default + "{% endif %}",
            "{% for message in messages %}",
            "{% if message['role'] == 'system' %}{{ " + quote(before) + " }}" + content,
            "{{ " + quote(after + conversation.sep) + " }}",
            "{% elif message['role'] == 'user' %}{{ " + user + " }}" + content + "{{ " + end + " }}",
            "{% elif message['role'] == 'assistant' %}{{ " + assistant + " }}" + content + "{{ " + end + " }}",
            "{% endif %}{% endfor %}",
            "{% if add_generation_prompt %}{{ " + assistant + " }}{% endif %}",
        ]
    )
