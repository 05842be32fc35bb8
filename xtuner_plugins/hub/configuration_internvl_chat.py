"""Configuration of the chat model: vision encoder, LLM, and what joins them."""

import copy

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration_intern_vit import InternVisionConfig
from .constants import PROJECTOR_TYPES, token_grid

# No keywords of a config's class, which the type names. Attention is chosen when a model is loaded, not by the file: a
# stored `flash_attention_2` couldn't be loaded without that package.
NOT_READ = ("attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "auto_map", "model_type")

# Written even if they have the default of transformers.
KEPT = ("model_type", "transformers_version")
KEPT_OF_CHAT = (*KEPT, "tie_word_embeddings")
KEPT_OF_LLM = (*KEPT, "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


class InternVLChatConfig(PretrainedConfig):
    """Everything in the `config.json` of an InternVL directory; other fields are those of `DEFAULTS`.

    Args:
        vision_config: Fields of an `InternVisionConfig`, or of CLIP's, SigLIP's or DINOv3's where `model_type` says so;
            or such a config.
        llm_config: Fields of the LLM's own config, or such a config. `model_type`, else `architectures[0]`, names any
            causal language model that the installed transformers knows.
        projector_type: `pixel_shuffle_mlp` (LayerNorm, Linear, GELU, Linear after the pixel shuffle), `mlp`
            (LLaVA's Linear, GELU, Linear; needs `downsample_ratio` 1), or `bilinear_mlp` (bilinear reduction of the
            patch grid by `downsample_ratio`, then as `mlp`). Stored only where it is not the first.
        **kwargs: Those of every config; and of a Flash model `flash_mode` (True), `flash_relative_threshold` and
            `flash_absolute_threshold` (see `modeling_flash.choose_tiles`).
    """

    _auto_class = "AutoConfig"  # `save_pretrained` writes this code beside the weights in every release
    model_type = "internvl_chat"
    is_composition = True
    has_no_defaults_at_init = True

    DEFAULTS = {  # what a missing field means in a published file
        "use_backbone_lora": 0,  # and the next: adapters are merged before a model is written in this format
        "use_llm_lora": 0,
        "pad2square": False,  # inert, written by published models
        "select_layer": -1,  # which hidden state of the encoder: -1 is the last block's output, 0 the embeddings
        "force_image_size": None,  # side of a tile in pixels; None is the encoder's `image_size`
        "downsample_ratio": 0.5,  # side of the token grid after the pixel shuffle, relative to the patch grid
        "template": None,  # name of the conversation template
        "dynamic_image_size": False,  # whether images are cut into tiles
        "use_thumbnail": False,  # whether a thumbnail follows the tiles if there are several
        "ps_version": "v1",  # pixel shuffle: `v2`, or `v1` that leaves the token grid transposed
        "min_dynamic_patch": 1,  # fewest and most tiles of an image, thumbnail not counted
        "max_dynamic_patch": 6,
    }

    def __init__(self, vision_config=None, llm_config=None, projector_type=None, **kwargs):
        fields = {name: kwargs.pop(name, default) for name, default in self.DEFAULTS.items()}
        kwargs.pop("hidden_size", None)  # follows from the LLM
        super().__init__(**kwargs)
        self.vision_config = _vision_config(vision_config)
        self.llm_config = _llm_config(llm_config)
        # The format always stores the head, so a tied one would be read as missing.
        self.tie_word_embeddings = False
        self.llm_config.tie_word_embeddings = False
        self.hidden_size = self.llm_config.hidden_size
        for name, value in fields.items():
            setattr(self, name, value)
        if projector_type not in (None, PROJECTOR_TYPES[0]):
            self.projector_type = projector_type

    def to_dict(self):
        """All fields, nested configs as dicts, in the names that every reader of the format knows."""
        output = super().to_dict()
        _use_lasting_names(output)
        for key in ("vision_config", "llm_config"):
            config = getattr(self, key, None)
            if isinstance(config, PretrainedConfig):
                output[key] = config.to_dict()
                _use_lasting_names(output[key])
                if output.get("torch_dtype"):
                    output[key]["torch_dtype"] = output["torch_dtype"]  # the parts are stored in one dtype
        return output

    def to_diff_dict(self):
        """What is written to `config.json`: all fields, except those of every transformers config at their defaults.

        Readers of the raw JSON know no defaults, so no field of ours or of the parts is left out.
        """
        output, common = self.to_dict(), PretrainedConfig().to_dict()
        parts = (output, KEPT_OF_CHAT), (output["vision_config"], KEPT), (output["llm_config"], KEPT_OF_LLM)
        for fields, kept in parts:
            for key in [key for key in fields if key in common and key not in kept]:
                if fields[key] == common[key]:
                    del fields[key]
        return output


def num_image_tokens(config):
    """N, the image tokens per tile, from an `InternVLChatConfig`; `ValueError` if the sizes don't divide."""
    side = config.force_image_size or config.vision_config.image_size
    projector_type = getattr(config, "projector_type", None)
    return token_grid(side, config.vision_config.patch_size, config.downsample_ratio, projector_type) ** 2


def _vision_config(fields):
    if isinstance(fields, PretrainedConfig):
        return fields
    fields = fields or {}
    kind = fields.get("model_type")
    make = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else InternVisionConfig
    return make(**_keywords(fields))


def _llm_config(fields):
    if isinstance(fields, PretrainedConfig):
        return fields
    if not fields:
        return CONFIG_MAPPING["qwen2"]()
    return CONFIG_MAPPING[llm_model_type(fields)](**_keywords(fields))


def llm_model_type(fields):
    """The transformers model type of an `llm_config`, from its `model_type`, else from its `architectures`.

    Raises:
        ValueError: The installed transformers has no such language model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = fields.get("model_type")
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return model_type
    architectures = fields.get("architectures") or []
    for known_type, class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if not model_type and class_name in architectures:
            return known_type
    raise ValueError(
        f"llm_config: model_type {model_type!r} with architectures {architectures} is no causal language model of the "
        "installed transformers; install a release that has it, or convert it (InternLM2 has an exact Llama form)"
    )


def _keywords(fields):
    # A copy down to the leaves: config classes of some releases write into the `rope_scaling` that they are given.
    return {key: copy.deepcopy(value) for key, value in fields.items() if key not in NOT_READ}


def _use_lasting_names(fields):
    """Renames in place the fields that newer transformers renamed; older readers silently ignore new names."""
    for key in ("_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash", "_name_or_path"):
        fields.pop(key, None)
    dtype = fields.pop("dtype", None) or fields.get("torch_dtype")
    if dtype is not None:
        fields["torch_dtype"] = str(dtype).replace("torch.", "")

    if fields.get("model_type") == "qwen3_moe" and "num_local_experts" in fields:
        fields["num_experts"] = fields.pop("num_local_experts")
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        rope = dict(fields.pop("rope_parameters"))
        fields["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            fields["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        fields["rope_scaling"] = rope
    scaling = fields.get("rope_scaling")
    if isinstance(scaling, dict):
        # Old releases accept `type` and exactly the keys of that type; later ones derive `rope_type` from it.
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        rest = {key: value for key, value in scaling.items() if key not in ("rope_type", "type")}
        if kind == "longrope" and "original_max_position_embeddings" in rest:
            fields["original_max_position_embeddings"] = rest.pop("original_max_position_embeddings")
        fields["rope_scaling"] = None if kind == "default" else {"type": kind, **rest}
