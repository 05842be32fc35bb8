"""CLIP, SigLIP and DINOv3 towers of transformers in place of InternViT."""

import inspect

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .modeling_intern_vit import num_used_layers, run_block


class TransformersTower(nn.Module):
    """A vision tower of transformers: its modules and weights, run layer by layer.

    Only the modules are taken, not the class around them: its name, its nesting and the way it returns hidden states
    differ between releases, while embeddings, layers and names of weights stayed the same. Weights are under
    `vision_model.*`, as in CLIP and SigLIP checkpoints, and DINOv3's blocks under `vision_model.encoder.layers.*`, too.
    SigLIP's pooling head and DINOv3's mask token are left out.

    Args:
        config: A `CLIPVisionConfig`, `SiglipVisionConfig`, `DINOv3ViTConfig`, or one whose model is built like CLIP's.

    Raises:
        ValueError: The model of this config has another structure.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        model = MODEL_MAPPING[type(config)](config)
        parts = dict(getattr(model, "vision_model", model).named_children())
        if config.model_type == "dinov3_vit":
            blocks = parts.pop("layer", None) or parts.pop("model").layer  # transformers 5: in an encoder
            parts["encoder"] = nn.Module()
            parts["encoder"].layers = blocks
            del parts["embeddings"].mask_token
        if not hasattr(parts.get("encoder"), "layers"):
            raise ValueError(f"vision_config: {config.model_type} is not built like CLIP's or SigLIP's vision tower")
        self.vision_model = nn.Module()
        for name, child in parts.items():
            if name != "head":
                self.vision_model.add_module(name, child)
        arguments, masks = inspect.signature(type(self.layers[0]).forward), ("attention_mask", "causal_attention_mask")
        self.layer_options = {name: None for name in masks if name in arguments.parameters}
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

    def unused_modules(self, select_layer):
        """Modules that features of `select_layer` don't depend on: later blocks and the final norm."""
        unused = list(self.layers[num_used_layers(select_layer, len(self.layers)) :])
        return [*unused, *(m for name, m in self.vision_model.named_children() if name in ("post_layernorm", "norm"))]

    def patch_features(self, pixel_values, select_layer=-1):
        """As `InternVisionModel.patch_features`, without register tokens either, and before the final norm.

        Raises:
            ValueError: There is no such layer, or tiles are of another size than the position embeddings.
        """
        num_layers = num_used_layers(select_layer, len(self.layers))
        embeddings, side = self.vision_model.embeddings, self.config.image_size
        if tuple(pixel_values.shape[-2:]) != (side, side):
            raise ValueError(f"tiles of {tuple(pixel_values.shape[-2:])} pixels for a vision tower of {side} x {side}")
        options, rope = self.layer_options, getattr(self.vision_model, "rope_embeddings", None)
        # These buffers are not stored, and undefined after loading in newer releases.
        if rope is None:
            embeddings.position_ids = torch.arange(embeddings.num_positions, device=pixel_values.device)[None]
        else:
            steps = torch.arange(0, 1, 4 / rope.head_dim, dtype=torch.float32, device=pixel_values.device)
            rope.inv_freq = 1 / rope.base**steps
            options = {**options, "position_embeddings": rope(pixel_values)}
        x = embeddings(pixel_values)
        if hasattr(self.vision_model, "pre_layrnorm"):
            x = self.vision_model.pre_layrnorm(x)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()

        def run(layer, x):
            x = layer(x, **options)
            return x[0] if isinstance(x, tuple) else x

        for layer in self.layers[:num_layers]:
            again = recompute and not getattr(layer, "gradient_checkpointing", False)
            x = run_block(layer, x, again, run)
        return x[:, x.shape[1] - (side // self.config.patch_size) ** 2 :]

    forward = patch_features
