"""Configuration of the InternViT vision encoder."""

from __future__ import annotations

from transformers.configuration_utils import PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    """Sizes and variants of an `InternVisionModel`; the defaults are those of the standalone InternViT-6B.

    The published model type is `intern_vit_6b` for every size, the 300M one too.

    Args:
        num_channels: Channels of an image.
        patch_size: Side of a patch in pixels.
        image_size: Side of a tile in pixels; position embeddings are stored for this size.
        qkv_bias: Whether the fused qkv projection has a bias.
        hidden_size: Width D of the encoder.
        num_attention_heads: Attention heads; must divide `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        qk_normalization: RMS norm of queries and keys over the whole D, all heads together.
        num_hidden_layers: Blocks.
        use_flash_attn: Kept for compatibility. Attention is `scaled_dot_product_attention`, which picks a
            flash kernel itself, unless the attention implementation is `eager`.
        hidden_act: Name of the activation.
        norm_type: `layer_norm` or `rms_norm`.
        layer_norm_eps: Epsilon of all norms.
        dropout: Dropout after projections and feed-forward layers.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 in the first.
        attention_dropout: Dropout of attention weights.
        initializer_range: Spread of freshly initialized matrices.
        initializer_factor: Initial value of the layer scales.
    """

    model_type = "intern_vit_6b"

    DEFAULTS = {
        "num_channels": 3,
        "patch_size": 14,
        "image_size": 224,
        "qkv_bias": False,
        "hidden_size": 3200,
        "num_attention_heads": 25,
        "intermediate_size": 12800,
        "qk_normalization": True,
        "num_hidden_layers": 48,
        "use_flash_attn": True,
        "hidden_act": "gelu",
        "norm_type": "rms_norm",
        "layer_norm_eps": 1e-6,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "initializer_factor": 0.1,
    }

    def __init__(self, **kwargs):
        fields = {name: kwargs.pop(name, default) for name, default in self.DEFAULTS.items()}
        super().__init__(**kwargs)
        for name, value in fields.items():
            setattr(self, name, value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Reads a standalone encoder's config, or the `vision_config` inside a chat model's."""
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls.from_dict(config_dict.get("vision_config", config_dict), **kwargs)
