"""What assembly must know of each language model family and vision tower: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xtuner_plugins.checkpoints.reader import CheckpointError

# Readers of the raw JSON (llama.cpp, lmdeploy) know no class defaults, so all of these are written for every LLM.
_COMMON_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "vocab_size",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class LLMFamily:
    """A language model that can stand inside an official directory.

    Attributes:
        model_type: ``model_type`` in its ``config.json``.
        architecture: the class that every engine dispatches on.
        embedding: key of the input embedding, without prefix.
        head: key of the output head, without prefix.
        fields: config fields that must be written, whatever the source left out.
        template: the conversation template to train with when none is named.
        keeps_padding: keep the embedding's padded rows (as released Qwen3 ones do), don't cut to the tokenizer.
        code: file stems of its own modelling code in an official directory, if transformers has no such class.
    """

    model_type: str
    architecture: str
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    fields: tuple[str, ...] = _COMMON_FIELDS
    template: str = "internvl2_5"
    keeps_padding: bool = False
    code: tuple[str, ...] = ()


LLM_FAMILIES: dict[str, LLMFamily] = {
    row.model_type: row
    for row in (
        LLMFamily("qwen2", "Qwen2ForCausalLM"),
        LLMFamily(
            "qwen3", "Qwen3ForCausalLM", fields=(*_COMMON_FIELDS, "head_dim", "attention_bias"), keeps_padding=True
        ),
        LLMFamily("llama", "LlamaForCausalLM", fields=(*_COMMON_FIELDS, "head_dim", "attention_bias")),
        LLMFamily(
            "phi3",
            "Phi3ForCausalLM",
            fields=(*_COMMON_FIELDS, "original_max_position_embeddings", "sliding_window"),
            template="phi3-chat",
        ),
    )
}

VISION_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "norm_type", "qkv_bias",
    "qk_normalization", "image_size", "patch_size", "num_channels", "layer_norm_eps", "hidden_act",
    "initializer_factor", "initializer_range", "attention_dropout", "dropout", "drop_path_rate", "use_flash_attn",
)  # fmt: skip


def llm_family(config: Mapping, where: str) -> LLMFamily:
    """The row of an LLM's config.

    Raises:
        CheckpointError: no such family; the message lists those that exist.
    """
    model_type = config.get("model_type")
    if model_type not in LLM_FAMILIES:
        raise CheckpointError(
            f"{where}: model_type {model_type!r} is not a language model that can be used here; "
            f"known are {', '.join(sorted(LLM_FAMILIES))}"
        )
    return LLM_FAMILIES[model_type]
