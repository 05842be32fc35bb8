"""The blocks of encoder and LLM: which of them features depend on, stochastic depth, recomputation, `torch.compile`."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ..hub.modeling_intern_vit import num_used_layers
from ..ranges import check
from .attention import keep_out_of_graphs


def used_blocks(encoder: nn.Module, select_layer: int) -> list[nn.Module]:
    """The blocks of InternViT or a `TransformersTower` that features of ``select_layer`` depend on, in order."""
    blocks = encoder.layers if hasattr(encoder, "layers") else encoder.encoder.layers
    return list(blocks[: num_used_layers(select_layer, len(blocks))])


def freeze_unused(encoder: nn.Module, select_layer: int) -> None:
    """Freezes weights and adapters that no feature depends on: CLIP's layers after ``select_layer``, final norms.

    DDP would wait forever for their gradients. InternViT ends at the layer in use.
    """
    for module in encoder.unused_modules(select_layer) if hasattr(encoder, "unused_modules") else ():
        module.requires_grad_(False)


def set_drop_path(encoder: nn.Module, rate: float) -> None:
    """Sets the stochastic depth of an encoder, whatever its base says: blocks that train skip their work at random.

    It is the official linear rule: from 0 in the first block to ``rate`` in the last, for each tile by itself.

    Raises:
        ValueError: A rate out of range, or above 0 for an encoder that has none.
    """
    check("drop_path", rate)
    if hasattr(encoder, "encoder"):
        encoder.encoder.set_drop_path(rate)
    elif rate:
        raise ValueError(f"drop_path={rate}: this kind of encoder has no stochastic depth, InternViT has; set it to 0")


def recompute_blocks(model: nn.Module, llm: bool, encoder: bool) -> None:
    """Makes the backward pass compute the blocks of LLM and encoder again, where a gradient passes through them.

    Under ZeRO-3 the LLM's blocks are recomputed in the reentrant way: the other one compares recomputed tensors with
    saved ones, and would find frozen weights that ZeRO-3 has released in between. The reentrant kind needs a block's
    input to require a gradient, even if all before it is frozen.

    Args:
        model: An `InternVLChatModel` with its trainable parameters chosen.
        llm, encoder: Whether to recompute it.
    """
    under_zero3 = is_deepspeed_zero3_enabled()
    if llm:
        _enable(model.language_model, reentrant=under_zero3)
        if under_zero3:
            embeddings = model.language_model.get_input_embeddings()
            embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
    trained = [name for name, parameter in model.vision_model.named_parameters() if parameter.requires_grad]
    if encoder and under_zero3 and any("lora_" in name for name in trained):
        print_log("ZeRO-3 can't recompute an encoder with LoRA: its activations are kept", "current", logging.WARNING)
    elif encoder and trained:
        _enable(model.vision_model, reentrant=False)


def _enable(part: nn.Module, reentrant: bool) -> None:
    part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if not reentrant and hasattr(part, "_require_grads_hook"):  # set by transformers 5 whether needed or not
        part.disable_input_require_grads()  # embeddings that don't train would be kept, and have a gradient


def compile_model_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Compiles all blocks of an `InternVLChatModel` in place at their first use; returns their number.

    No name of a parameter changes, and recomputation stays around the compiled block. Attention over segments stays out
    of the graph: it depends on where samples begin, and compiling would begin again with every batch.

    Args:
        model: With adapters and recomputation set.
        backend: Of `torch.compile`.

    Raises:
        ValueError: ZeRO-3, packed weights, or stochastic depth.
    """
    packed = [name for name, each in model.named_modules() if type(each).__module__.startswith("bitsandbytes")]
    blocks = used_blocks(model.vision_model, model.select_layer)
    drops, under_zero3 = any(getattr(each, "drop_path_rate", 0) for each in blocks), is_deepspeed_zero3_enabled()
    refused = {
        "ZeRO-3 gathers and releases weights inside of blocks; use --deepspeed deepspeed_zero2": under_zero3,
        f"packed weights ({', '.join(packed[:1])}) aren't compiled; set the quantization to None": packed,
        "stochastic depth would make each block of the encoder a graph of its own; set drop_path=0": drops,
    }
    for reason, is_so in refused.items():
        if is_so:
            raise ValueError(f"compile_blocks=True: {reason}, or set compile_blocks=False")
    keep_out_of_graphs()
    blocks += model.language_model.get_decoder().layers
    for block in blocks:
        block.compile(backend=backend, dynamic=True)
    return len(blocks)
