"""Which activations the backward pass computes again instead of keeping them, part by part."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled


def recompute_blocks(model: nn.Module, llm: bool, encoder: bool) -> None:
    """Sets LLM and encoder of an `InternVLChatModel`; an encoder that no gradient passes through is left alone.

    Under ZeRO-3 the LLM's blocks are recomputed in the reentrant way: the other one compares recomputed tensors with
    saved ones, and would find frozen weights that ZeRO-3 has released in between. The reentrant kind needs a block's
    input to require a gradient, even if all before it is frozen.

    Args:
        model: With its trainable parameters chosen.
        llm: Recompute the LLM's blocks.
        encoder: Recompute the encoder's.
    """
    under_zero3 = is_deepspeed_zero3_enabled()
    if llm:
        _enable(model.language_model, reentrant=under_zero3)
        if under_zero3:
            embeddings = model.language_model.get_input_embeddings()
            embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
    trained = [name for name, parameter in model.vision_model.named_parameters() if parameter.requires_grad]
    if not encoder or not trained:
        return
    if under_zero3 and any("lora_" in name for name in trained):
        print_log("ZeRO-3 can't recompute an encoder with LoRA: its activations are kept", "current", logging.WARNING)
        return
    _enable(model.vision_model, reentrant=False)


def _enable(part: nn.Module, reentrant: bool) -> None:
    part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if not reentrant and hasattr(part, "_require_grads_hook"):  # set by transformers 5 whether needed or not
        part.disable_input_require_grads()  # embeddings that don't train would be kept, and have a gradient
