"""Which activations the backward pass computes again instead of keeping them, part by part."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from mmengine.logging import print_log
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.integrations import is_deepspeed_zero3_enabled


@dataclass(frozen=True)
class Recompute:
    """What is computed again, as the settings of `VisionLanguageModel` say it; see there.

    Raises:
        ValueError: ``visual_encoder_checkpointing`` is no group of blocks.
    """

    gradient_checkpointing: bool
    visual_encoder_checkpointing: bool | int | None
    projector_checkpointing: bool

    def __post_init__(self):
        group = self.visual_encoder_checkpointing
        if group is not None and group < 0:
            raise ValueError(
                f"visual_encoder_checkpointing={group!r} is no number of blocks; give True, False, the number of "
                "blocks that are recomputed together, or None for what gradient_checkpointing says"
            )

    @property
    def encoder_group(self) -> int:
        """Blocks of the encoder that are recomputed together; 0 keeps all activations."""
        group = self.visual_encoder_checkpointing
        return int(self.gradient_checkpointing if group is None else group)

    def apply(self, model: nn.Module, adapts_encoder: bool) -> None:
        """Sets LLM and encoder of an `InternVLChatModel`; a part that no gradient passes through is left alone.

        Args:
            model: With its trainable parameters chosen.
            adapts_encoder: Whether the encoder has LoRA.

        Raises:
            ValueError: The projector is to be recomputed under ZeRO-3.
        """
        encoder = model.vision_model
        if self.projector_checkpointing and is_deepspeed_zero3_enabled():
            raise ValueError(
                "projector_checkpointing=True: ZeRO-3 releases the projector's weights in between; use --deepspeed "
                "deepspeed_zero2, or set projector_checkpointing=False"
            )
        if self.gradient_checkpointing:
            _recompute_llm(model.language_model)
        if not self.encoder_group or not _trains(encoder):
            return
        if is_deepspeed_zero3_enabled() and adapts_encoder:
            print_log(
                "ZeRO-3 can't recompute an encoder with LoRA: its activations are kept", "current", logging.WARNING
            )
            return
        encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        (encoder.encoder if hasattr(encoder, "encoder") else encoder).recompute_group = self.encoder_group

    def project(self, model: nn.Module, patches: torch.Tensor) -> torch.Tensor:
        """The projector's features ``[T, N, D]`` of patches ``[T, P, C]``, kept or computed again."""
        learns = patches.requires_grad or _trains(model.mlp1)
        if self.projector_checkpointing and learns and torch.is_grad_enabled() and model.mlp1.training:
            return checkpoint(model.project, patches, use_reentrant=False)
        return model.project(patches)


def _trains(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


def _recompute_llm(llm: nn.Module) -> None:
    """Enables gradient checkpointing: reentrant under ZeRO-3, non-reentrant otherwise.

    Non-reentrant checkpointing compares recomputed tensors with saved ones, and would find frozen weights that ZeRO-3
    has released in between. The reentrant kind needs a block's input to require a gradient, even if all before it is
    frozen.
    """
    reentrant = is_deepspeed_zero3_enabled()
    llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        llm.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
