"""Configuration of the InternViT vision encoder."""

from transformers.configuration_utils import PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    """Sizes and variants of an `InternVisionModel`; the defaults are those of the standalone InternViT-6B.

    The published model type is `intern_vit_6b` for every size, the 300M one too. Fields are those of `DEFAULTS`.
    """

    model_type = "intern_vit_6b"

    DEFAULTS = {
        "num_channels": 3,
        "patch_size": 14,  # side in pixels
        "image_size": 224,  # side of a tile in pixels, for which position embeddings are stored
        "qkv_bias": False,  # whether the fused qkv projection has a bias
        "hidden_size": 3200,  # width D, a multiple of `num_attention_heads`
        "num_attention_heads": 25,
        "intermediate_size": 12800,  # width of the feed-forward layers
        "qk_normalization": True,  # RMS norm of queries and keys over the whole D, all heads together
        "num_hidden_layers": 48,  # blocks
        "use_flash_attn": True,  # without effect: PyTorch's attention picks a flash kernel itself
        "hidden_act": "gelu",
        "norm_type": "rms_norm",  # or `layer_norm`
        "layer_norm_eps": 1e-6,  # of all norms
        "dropout": 0.0,  # after projections and feed-forward layers
        "drop_path_rate": 0.0,  # stochastic depth of the last block; it grows linearly from 0 in the first
        "attention_dropout": 0.0,  # of attention weights
        "initializer_range": 0.02,  # spread of freshly initialized matrices
        "initializer_factor": 0.1,  # initial value of the layer scales
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
