"""The vision encoder's config: published defaults, and reading it out of a chat model's."""

from xtuner_plugins.hub import InternVisionConfig

from .cases import make_config


def test_defaults_are_the_standalone_6b():
    config = InternVisionConfig()
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (3200, 12800, 48)
    assert (config.num_attention_heads, config.image_size, config.patch_size) == (25, 224, 14)
    assert (config.norm_type, config.qk_normalization, config.qkv_bias) == ("rms_norm", True, False)
    assert config.model_type == "intern_vit_6b"


def test_inside_a_chat_model(tmp_path):
    chat = make_config()
    chat.save_pretrained(tmp_path)
    inside = InternVisionConfig.from_pretrained(tmp_path)
    assert inside.hidden_size == chat.vision_config.hidden_size != 3200
    assert inside.image_size == chat.vision_config.image_size and inside.model_type == "intern_vit_6b"
