"""Which keys of a model directory's JSON files are read and written: those listed here, at every level.

transformers acts on keys that have nothing to do with the weights: it asks a hub for attention kernels, runs the code
of another repository, or replaces the generation loop. So other keys are dropped on reading, and named unless they only
say what a missing key says. Values that lie about the model are refused before anything is built from them.
"""

import functools
import logging
import textwrap
from collections.abc import Iterable, Mapping
from reprlib import repr as _short  # what a file holds may be of any length
from typing import Any

from ..families import LLM_FAMILIES, encoder_family, llm_family
from .errors import CheckpointError

_COMMON = ("architectures", "model_type", "torch_dtype", "dtype", "tie_word_embeddings", "transformers_version")
_OFFICIAL = (
    "auto_map template system_message no_system_message select_layer ps_version projector_type downsample_ratio "
    "force_image_size dynamic_image_size use_thumbnail min_dynamic_patch max_dynamic_patch use_backbone_lora "
    "use_llm_lora pad2square hidden_size image_fold output_attentions flash_mode flash_relative_threshold "
    "flash_absolute_threshold llm_config vision_config"
).split()
_HF = (
    "downsample_ratio image_seq_length image_token_id projector_hidden_act vision_feature_layer "
    "vision_feature_select_strategy text_config vision_config"
).split()
_VISION = (
    "attention_dropout dropout drop_path_rate attention_bias use_qk_norm hidden_dropout_prob layer_scale_init_value "
    "projection_dropout projection_dim use_absolute_position_embeddings use_mask_token use_mean_pooling "
    "vision_use_head initializer_factor initializer_range norm_type pos_embed_shift pos_embed_jitter pos_embed_rescale "
    "layerscale_value apply_layernorm reshape_hidden_states stage_names out_features out_indices"
).split()
_LLM = (
    "use_cache attention_dropout initializer_range attention_bias mlp_bias bias use_sliding_window sliding_window "
    "max_window_layers layer_types head_dim pretraining_tp partial_rotary_factor original_max_position_embeddings "
    "embd_pdrop resid_pdrop rope_parameters"
).split()
_QWEN = ("layer_norm_epsilon", "rotary_emb_base", "seq_length", "no_bias", "rotary_pct", "kv_channels")
_ROPE = (
    "rope_type type factor rope_theta original_max_position_embeddings attention_factor beta_fast beta_slow "
    "short_factor long_factor low_freq_factor high_freq_factor mscale mscale_all_dim"
).split()
_LANGUAGES = {"internlm2": _LLM, "qwen": (*_LLM, *_QWEN)}  # read as another family
# By file: keys of its top level. Vocabularies are data, not settings.
FILES = {
    "generation_config.json": (
        "_from_model_config eos_token_id bos_token_id pad_token_id transformers_version do_sample temperature top_p "
        "top_k repetition_penalty max_new_tokens max_length"
    ).split(),
    "tokenizer_config.json": (
        "tokenizer_class added_tokens_decoder additional_special_tokens bos_token eos_token unk_token pad_token "
        "sep_token cls_token mask_token chat_template clean_up_tokenization_spaces model_max_length padding_side "
        "truncation_side split_special_tokens add_bos_token add_eos_token add_prefix_space legacy errors "
        "use_default_system_prompt processor_class extra_special_tokens return_token_type_ids start_image_token "
        "end_image_token context_image_token video_token image_token backend is_local model_specific_special_tokens"
    ).split(),
    "processor_config.json": (
        "processor_class image_seq_length patch_size vision_feature_select_strategy num_additional_image_tokens "
        "image_token"
    ).split(),
}
_PIXELS = (
    "crop_size do_center_crop do_normalize do_resize do_rescale do_convert_rgb feature_extractor_type image_mean "
    "image_std resample size rescale_factor image_processor_type video_processor_type processor_class crop_to_patches "
    "min_patches max_patches"
).split()
FILES |= dict.fromkeys(("preprocessor_config.json", "video_preprocessor_config.json"), _PIXELS)
_TOKENS = [key for key in FILES["tokenizer_config.json"] if key.endswith(("_token", "_tokens"))]
FILES["special_tokens_map.json"] = _TOKENS

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "su", "llama3")
# Whole numbers from 1, and the most that one may be; then other numbers, least and most.
_SIZES = dict.fromkeys(
    "hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim vocab_size moe_intermediate_size "
    "min_dynamic_patch max_dynamic_patch".split(),
    10**6,
)
_SIZES |= dict.fromkeys(("num_hidden_layers", "num_experts", "num_experts_per_tok", "num_channels"), 1000)
_SIZES |= {"image_size": 10**4, "force_image_size": 10**4, "patch_size": 1000, "max_position_embeddings": 10**8}
_NUMBERS = dict.fromkeys("rms_norm_eps layer_norm_eps layer_norm_epsilon".split(), (0, 1))
_NUMBERS |= dict.fromkeys("attention_dropout dropout drop_path_rate embd_pdrop resid_pdrop".split(), (0, 1))
_NUMBERS |= {"downsample_ratio": (0.01, 1), "partial_rotary_factor": (0.01, 1), "rope_theta": (1, 10**12)}


def config_fields(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A ``config.json``, official or hf, with its listed keys alone; ``where`` is the file, for messages.

    Raises:
        UnknownFamilyError: a language model or an encoder without a row.
        CheckpointError: a value that no such model has.
    """
    kept = _keep(fields, (*_COMMON, *_OFFICIAL, *_HF), where)
    for key, kind in (("system_message", str), ("no_system_message", bool)):
        _expect(isinstance(kept.get(key), (kind, type(None))), f"{where}: {key}", kept.get(key), kind.__name__)
    for name in ("llm_config", "text_config", "vision_config"):
        if isinstance(kept.get(name), Mapping):
            check = vision_fields if name == "vision_config" else language_fields
            kept[name] = check(kept[name], f"{where}: {name}")
    return kept


def language_fields(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """As ``config_fields``, of a language model's own config.

    Without ``model_type`` the class that it names decides; without both it is Qwen2's, as in transformers.
    """
    architectures = fields.get("architectures") or ["Qwen2ForCausalLM"]
    named = (row.model_type for row in LLM_FAMILIES.values() if row.architecture in architectures)
    model_type = fields.get("model_type", next(named, None))
    if model_type == "qwen3_moe":  # transformers 5 writes another name
        fields = {"num_experts" if key == "num_local_experts" else key: value for key, value in fields.items()}
    own = () if model_type in _LANGUAGES else llm_family({**fields, "model_type": model_type}, where).fields
    base = llm_family({"model_type": "llama"}).fields
    kept = _keep(fields, (*_COMMON, *base, *own, *_LANGUAGES.get(model_type, _LLM)), where) | {"model_type": model_type}
    check_values(kept, where)
    for key in ("rope_scaling", "rope_parameters"):
        if (rope := kept.get(key)) is not None:
            _expect(isinstance(rope, Mapping), f"{where}: {key}", rope, "an object")
            kind = rope.get("rope_type", rope.get("type", "default"))
            _expect(kind in ROPE_TYPES, f"{where}: {key}: the type", kind, f"one of {', '.join(ROPE_TYPES)}")
            kept[key] = _keep(rope, _ROPE, f"{where}: {key}")
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        token_ids(kept.get(key), kept, f"{where}: {key}")
    return kept


def token_ids(value: Any, llm: Mapping[str, Any], where: str) -> list[int]:
    """An id or a list of ids of a language model with this config, as a list; empty for None."""
    found, most = value if isinstance(value, list) else [] if value is None else [value], llm.get("vocab_size") or 10**6
    are_ids = all(type(each) is int and -1 <= each < most for each in found)
    _expect(are_ids, where, value, f"ids below vocab_size {most}")
    return found


def vision_fields(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """As ``config_fields``, of an encoder's own config."""
    own = () if fields.get("model_type") == "internvl_vision" else encoder_family(fields, where).fields
    kept = _keep(fields, (*_COMMON, *encoder_family({"model_type": "intern_vit_6b"}).fields, *own, *_VISION), where)
    check_values(kept, where)
    return kept


def file_fields(name: str, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The listed keys of another JSON file of a model directory, a key of ``FILES``."""
    # InternLM2's tokenizer has its own code, which goes along.
    own = ("auto_map",) if fields.get("tokenizer_class") == "InternLM2Tokenizer" else ()
    return _keep(fields, (*FILES[name], *own), where)


def _keep(fields: Mapping[str, Any], keys: Iterable[str], where: str) -> dict[str, Any]:
    """The listed fields alone, without an ``auto_map`` that points to another repository."""
    dropped = {"auto_map"} if "--" in repr(fields.get("auto_map")) else set()
    kept = {key: fields[key] for key in fields if key in set(keys) - dropped}
    said = {key: value for key, value in fields.items() if key not in kept and value not in (None, False, "", [], {})}
    if told := [key for key in said if said[key] != _defaults().get(key)]:  # it says more than a missing key does
        _tell(f"{where}: left out {textwrap.shorten(', '.join(told), 300, placeholder=' ...')}")
    return kept


@functools.lru_cache
def _defaults() -> dict[str, Any]:
    from transformers import PretrainedConfig

    return PretrainedConfig().to_dict()


_tell = functools.lru_cache(logging.getLogger(__name__).warning)  # once each


def check_values(fields: Mapping[str, Any], where: str) -> None:
    """Refuses sizes, rates and an activation that no model has, with a `CheckpointError`."""
    for key, (least, most) in _NUMBERS.items():
        value = fields.get(key, least)
        is_one = least <= value <= most if type(value) in (int, float) else value is None and least > 0
        _expect(is_one, f"{where}: {key}", value, f"{least} to {most:,}")
    for key, most in _SIZES.items():
        value = fields.get(key)
        for each in value if isinstance(value, list) and key in ("image_size", "patch_size") else [value]:
            is_size = each is None or (type(each) is int and 0 < each <= most)
            _expect(is_size, f"{where}: {key}", value, f"a whole number from 1 to {most:,}")
    activation = fields.get("hidden_act", "silu")
    _expect(activation in ACTIVATIONS, f"{where}: hidden_act", activation, f"one of {', '.join(ACTIVATIONS)}")


def _expect(is_so: bool, where: str, value: Any, expected: str) -> None:
    if not is_so:
        raise CheckpointError(f"{where} is {_short(value)}, expected {expected}")
