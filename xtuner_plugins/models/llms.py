"""The LLM families that training knows: one row each, keyed by the ``model_type`` of the LLM's config."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LLMFamily:
    """What training needs to know of a family beside its transformers class.

    Attributes:
        lora_targets: Names of the linear layers of a block, what LoRA adapts by default (never the head).
        decoder: Attribute that holds the decoder without its head.
    """

    lora_targets: tuple[str, ...]
    decoder: str = "model"


_LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

LLM_FAMILIES: dict[str, LLMFamily] = {
    "qwen2": LLMFamily(lora_targets=_LLAMA_LINEARS),
    "qwen3": LLMFamily(lora_targets=_LLAMA_LINEARS),
    "llama": LLMFamily(lora_targets=_LLAMA_LINEARS),
    "phi3": LLMFamily(lora_targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
}


def llm_family(model_type: str) -> LLMFamily:
    """The row of ``model_type``.

    Raises:
        ValueError: The family has no row.
    """
    try:
        return LLM_FAMILIES[model_type]
    except KeyError:
        known = ", ".join(LLM_FAMILIES)
        raise ValueError(
            f"LLM type {model_type!r} cannot be trained; known: {known} (a new one is a row in models/llms.py)"
        ) from None
