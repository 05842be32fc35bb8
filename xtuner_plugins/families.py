"""The model families: one row per language model, one per vision encoder.

Assembly, loading, training and export read these rows and nothing else about a family. To add an LLM that transformers
has, add a row to `LLM_FAMILIES` (and a template to `hub/conversation.py` if it needs one of its own).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .hub.constants import IMAGENET_MEAN, IMAGENET_STD

# llama.cpp and lmdeploy read the raw JSON and know no class defaults, so these are written for every LLM.
_LLM_FIELDS = tuple(
    """hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act
    max_position_embeddings rms_norm_eps rope_theta rope_scaling vocab_size
    bos_token_id eos_token_id pad_token_id""".split()
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # keys of every LLM, without prefix
_LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TOWER_FIELDS = tuple(
    """hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size num_channels
    hidden_act layer_norm_eps""".split()
)
_EXPERTS = """num_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step mlp_only_layers
    router_aux_loss_coef output_router_logits""".split()
_INTERN_VIT = "norm_type qkv_bias qk_normalization initializer_factor initializer_range use_flash_attn".split()
_DINOV3 = "rope_theta query_bias key_bias value_bias proj_bias mlp_bias use_gated_mlp num_register_tokens".split()


class Part(NamedTuple):
    """A part of a model, which settings call by its key in `PARTS`."""

    attribute: str  # of `InternVLChatModel`; names of its tensors begin with it
    section: str | None  # of ``config.json``; None for the projector
    is_frozen: bool  # where ``freeze_NAME`` isn't set


PARTS = {
    "visual_encoder": Part("vision_model", "vision_config", True),
    "projector": Part("mlp1", None, False),
    "llm": Part("language_model", "llm_config", True),
}

# Of a new Flash model; ours. At most about 70 % of a request's tiles, 52 % of its image tokens, are saved.
FLASH = {"flash_mode": True, "flash_relative_threshold": 0.3, "flash_absolute_threshold": 0.5}


class UnknownFamilyError(ValueError):
    """A `model_type` without a row; the message lists those that exist."""


@dataclass(frozen=True)
class Family:
    """What a row says of encoders and of LLMs."""

    model_type: str  # of its config
    architecture: str  # its class, on which every engine dispatches
    lora_targets: tuple[str, ...]  # a block's linear layers that LoRA adapts by default (never the head)
    fields: tuple[str, ...]  # config fields that are always written, even if the source lacks them
    quantized: tuple[str, ...] | None = None  # a block's linear layers that 4 bits hold; None is ``lora_targets``

    @property
    def packed_linears(self) -> tuple[str, ...]:
        """Names of a block's linear layers that are held in 4 bits."""
        return self.quantized or self.lora_targets


@dataclass(frozen=True)
class LLMFamily(Family):
    """A language model that an official directory can hold."""

    lora_targets: tuple[str, ...] = _LLAMA_LINEARS
    fields: tuple[str, ...] = _LLM_FIELDS
    template: str = "internvl2_5"  # default conversation template
    keeps_padding: bool = False  # of the embedding, as in released Qwen3 models; else it has the tokenizer's size


class LlavaNames(NamedTuple):
    """What `LlavaForConditionalGeneration` and its processor call an encoder's properties."""

    feature_strategy: str  # `vision_feature_select_strategy`
    image_processor: str  # its class
    class_tokens: int  # before the patches, which are dropped


@dataclass(frozen=True)
class EncoderFamily(Family):
    """A vision encoder."""

    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    fields: tuple[str, ...] = _TOWER_FIELDS
    fixed: tuple[tuple[str, object], ...] = (("attention_dropout", 0.0),)  # config fields, written with this value
    image_mean: tuple[float, float, float] = IMAGENET_MEAN  # in [0, 1], for a directory that doesn't name its own
    image_std: tuple[float, float, float] = IMAGENET_STD
    select_layer: int = -2  # default layer whose output is used
    projector_type: str = "mlp"  # default
    whole_type: str | None = None  # `model_type` of the two-sided model (image and text) that holds such a tower
    llava: LlavaNames | None = None  # None if LLaVA's class can't hold it

    @property
    def is_intern_vit(self) -> bool:
        """Whether it is our own `InternVisionModel` rather than a tower of transformers."""
        return self.architecture == "InternVisionModel"


LLM_FAMILIES: dict[str, LLMFamily] = {
    row.model_type: row
    for row in (
        LLMFamily("qwen2", "Qwen2ForCausalLM"),
        LLMFamily("qwen3", "Qwen3ForCausalLM", fields=(*_LLM_FIELDS, "head_dim", "attention_bias"), keeps_padding=True),
        LLMFamily(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            # Attention alone: adapters on every expert would be thousands of small layers.
            lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
            quantized=_LLAMA_LINEARS,
            fields=(*_LLM_FIELDS, "head_dim", "attention_bias", *_EXPERTS),
            keeps_padding=True,
        ),
        LLMFamily("llama", "LlamaForCausalLM", fields=(*_LLM_FIELDS, "head_dim", "attention_bias")),
        LLMFamily("mistral", "MistralForCausalLM", fields=(*_LLM_FIELDS, "head_dim", "sliding_window")),
        LLMFamily(
            "phi3",
            "Phi3ForCausalLM",
            lora_targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
            fields=(*_LLM_FIELDS, "original_max_position_embeddings", "sliding_window"),
            template="phi3-chat",
        ),
    )
}

ENCODER_FAMILIES: dict[str, EncoderFamily] = {
    row.model_type: row
    for row in (
        EncoderFamily(
            "intern_vit_6b",  # the official name for every InternViT, the 300M included
            "InternVisionModel",
            lora_targets=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
            fields=(*_TOWER_FIELDS, *_INTERN_VIT),
            fixed=(("attention_dropout", 0.0), ("dropout", 0.0), ("drop_path_rate", 0.0)),
            select_layer=-1,
            projector_type="pixel_shuffle_mlp",
        ),
        EncoderFamily(
            "clip_vision_model",
            "CLIPVisionModel",
            image_mean=(0.48145466, 0.4578275, 0.40821073),
            image_std=(0.26862954, 0.26130258, 0.27577711),
            whole_type="clip",
            llava=LlavaNames("default", "CLIPImageProcessor", class_tokens=1),
        ),
        EncoderFamily(
            "siglip_vision_model",
            "SiglipVisionModel",
            fixed=(("attention_dropout", 0.0), ("vision_use_head", False)),
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.5, 0.5, 0.5),
            whole_type="siglip",
            llava=LlavaNames("full", "SiglipImageProcessor", class_tokens=0),
        ),
        EncoderFamily(
            "dinov3_vit",
            "DINOv3ViTModel",
            lora_targets=_LLAMA_LINEARS,  # the same names
            fields=(*_TOWER_FIELDS, *_DINOV3),
            # Its own training moved positions at random, which transformers goes on with by default.
            fixed=(
                ("attention_dropout", 0.0),
                ("drop_path_rate", 0.0),
                *((f"pos_embed_{change}", None) for change in ("shift", "jitter", "rescale")),
            ),
            select_layer=-1,
            projector_type="pixel_shuffle_mlp",
        ),
    )
}


def target_matcher(targets: str | Sequence[str]) -> Callable[[str], bool]:
    """Whether a layer's name is one of LoRA's ``target_modules``, by PEFT's rules: endings, or a regular expression.

    Raises:
        ValueError: It is no regular expression.
    """
    if isinstance(targets, str):
        try:
            whole = re.compile(targets)
        except re.error as error:
            raise ValueError(f"target_modules={targets!r} is no regular expression: {error}") from None
        return lambda name: whole.fullmatch(name) is not None
    ends = tuple(f".{target}" for target in targets)
    return lambda name: f".{name}".endswith(ends)


def llm_family(config: Mapping, where: str = "llm_config") -> LLMFamily:
    """The row of an LLM's config; ``where`` names it in the message.

    Raises:
        UnknownFamilyError: `model_type` has no row.
    """
    model_type = config.get("model_type")
    if model_type not in LLM_FAMILIES:
        raise UnknownFamilyError(
            f"{where}: model_type {model_type!r} is not a language model that can be used here; "
            f"known are {', '.join(sorted(LLM_FAMILIES))} (a new one is a row in xtuner_plugins/families.py)"
        )
    return LLM_FAMILIES[model_type]


def encoder_family(config: Mapping, where: str = "vision_config") -> EncoderFamily:
    """The row of an encoder's config, or of the two-sided model's around it (CLIP, SigLIP), as `llm_family`.

    Raises:
        UnknownFamilyError: `model_type` has no row; without a `model_type`, `architectures` decide.
    """
    model_type, architectures = config.get("model_type"), config.get("architectures") or []
    for row in ENCODER_FAMILIES.values():
        if model_type in (row.model_type, row.whole_type or row.model_type):
            return row
        if not model_type and row.architecture in architectures:
            return row
    raise UnknownFamilyError(
        f"{where}: model_type {model_type!r} (architectures {architectures}) is not a vision encoder that can be used "
        f"here; known are {', '.join(ENCODER_FAMILIES)} (a new one is a row in xtuner_plugins/families.py)"
    )


def families_of(config: Mapping) -> dict[str, EncoderFamily | LLMFamily]:
    """The rows of a whole model's ``config.json``, by the names of `PARTS`; raises `UnknownFamilyError`."""
    return {"visual_encoder": encoder_family(config["vision_config"]), "llm": llm_family(config["llm_config"])}
