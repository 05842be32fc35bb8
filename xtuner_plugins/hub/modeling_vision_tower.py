"""CLIP and SigLIP towers of transformers in place of InternViT."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .modeling_intern_vit import num_used_layers, run_block


class TransformersTower(nn.Module):
    """A vision tower of transformers: its modules and weights, run layer by layer.

    Only the modules are taken, not the class around them: its name, its nesting and the way it returns hidden states
    differ between releases, while embeddings, layers and names of weights stayed the same. Weights are under
    `vision_model.*`, as in CLIP and SigLIP checkpoints; SigLIP's pooling head is left out.

    Args:
        config: A `CLIPVisionConfig`, a `SiglipVisionConfig` or another one whose model has their structure.

    Raises:
        ValueError: The model of this config has another structure.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        model = vision_model_class(config)(config)
        if not hasattr(getattr(getattr(model, "vision_model", model), "encoder", None), "layers"):
            raise ValueError(f"vision_config: {config.model_type} is not built like CLIP's or SigLIP's vision tower")
        self.vision_model = nn.Module()
        for name, child in getattr(model, "vision_model", model).named_children():
            if name != "head":
                self.vision_model.add_module(name, child)
        layer_arguments = inspect.signature(type(self.layers[0]).forward).parameters
        self.layer_options = {
            name: None for name in ("attention_mask", "causal_attention_mask") if name in layer_arguments
        }
        self.gradient_checkpointing = False

    @property
    def layers(self):
        """The blocks, in order."""
        return self.vision_model.encoder.layers

    @property
    def dtype(self):
        """Of the weights."""
        return next(self.parameters()).dtype

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None):
        """Recomputes blocks in the backward pass, always in the non-reentrant way."""
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self):
        """Keeps activations again."""
        self.gradient_checkpointing = False

    def unused_modules(self, select_layer):
        """Modules that features of `select_layer` don't depend on: later blocks and the final norm."""
        unused = list(self.layers[num_used_layers(select_layer, len(self.layers)) :])
        return [*unused, *(m for name, m in self.vision_model.named_children() if name == "post_layernorm")]

    def patch_features(self, pixel_values, select_layer=-1):
        """Hidden state of the patches after a chosen block, without CLIP's class token; later blocks don't run.

        Args:
            pixel_values: [T, C, S, S], normalized.
            select_layer: Index into the hidden states (0: embeddings, -1: output of the last block).

        Returns:
            [T, P, D], before the final norm.

        Raises:
            ValueError: There is no such layer, or tiles are of another size than the position embeddings.
        """
        num_layers = num_used_layers(select_layer, len(self.layers))
        embeddings, side = self.vision_model.embeddings, self.config.image_size
        if tuple(pixel_values.shape[-2:]) != (side, side):
            raise ValueError(f"tiles of {tuple(pixel_values.shape[-2:])} pixels for a vision tower of {side} x {side}")
        # Not stored, and undefined after loading in newer releases.
        embeddings.position_ids = torch.arange(embeddings.num_positions, device=pixel_values.device)[None]
        x = embeddings(pixel_values)
        if hasattr(self.vision_model, "pre_layrnorm"):
            x = self.vision_model.pre_layrnorm(x)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers[:num_layers]:
            x = run_block(layer, x, recompute and not getattr(layer, "gradient_checkpointing", False), self._run_layer)
        return x[:, 1:] if hasattr(embeddings, "class_embedding") else x

    def _run_layer(self, layer, x):
        x = layer(x, **self.layer_options)
        return x[0] if isinstance(x, tuple) else x

    def forward(self, pixel_values, select_layer=-1):
        """As `patch_features`."""
        return self.patch_features(pixel_values, select_layer)


def vision_model_class(config):
    """The transformers class of a CLIP or SigLIP vision config."""
    return MODEL_MAPPING[type(config)]
