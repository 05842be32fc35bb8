"""What is read from and written to `config.json`, of the chat model and of the encoder inside it."""

import json

import pytest
import torch

from xtuner_plugins.hub.configuration_intern_vit import InternVisionConfig
from xtuner_plugins.hub.configuration_internvl_chat import InternVLChatConfig, _use_lasting_names

from .cases import LLM, LLMS, VISION, make_config, make_model


def written(config, path):
    config.save_pretrained(path)
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def test_defaults_are_those_of_a_missing_field():
    config, vision = InternVLChatConfig(), InternVisionConfig()
    assert config.vision_config.to_dict() == vision.to_dict() and config.llm_config.model_type == "qwen2"
    sizes = dict(hidden_size=3200, intermediate_size=12800, num_hidden_layers=48, num_attention_heads=25)
    sizes |= dict(image_size=224, patch_size=14, norm_type="rms_norm", qk_normalization=True, qkv_bias=False)
    sizes |= dict(num_channels=3, layer_norm_eps=1e-6, hidden_act="gelu", initializer_factor=0.1, drop_path_rate=0.0)
    sizes |= dict(use_flash_attn=True, dropout=0.0, attention_dropout=0.0, initializer_range=0.02)
    expected = dict(ps_version="v1", downsample_ratio=0.5, select_layer=-1, min_dynamic_patch=1, max_dynamic_patch=6)
    expected |= dict(dynamic_image_size=False, use_thumbnail=False, hidden_size=config.llm_config.hidden_size)
    expected |= dict(template=None, force_image_size=None, pad2square=False, use_backbone_lora=0, use_llm_lora=0)
    assert vars(vision).items() >= sizes.items() and vars(config).items() >= expected.items()
    assert InternVLChatConfig.has_no_defaults_at_init and "internvl_chat" in repr(config)
    again = InternVLChatConfig(config.vision_config, config.llm_config)  # ready-made
    assert again.vision_config is config.vision_config and again.llm_config is config.llm_config


def test_every_field_of_the_format_is_written_and_read(tmp_path):
    config = make_config(llm=LLMS["llama"], min_dynamic_patch=2, max_dynamic_patch=24, select_layer=-2)
    fields = written(config, tmp_path)
    expected = (
        "architectures model_type vision_config llm_config hidden_size tie_word_embeddings template select_layer "
        "ps_version downsample_ratio force_image_size pad2square dynamic_image_size use_thumbnail min_dynamic_patch "
        "max_dynamic_patch use_backbone_lora use_llm_lora transformers_version auto_map"
    )
    assert sorted(fields) == sorted(expected.split())
    assert fields["auto_map"] == {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    assert {*InternVisionConfig.DEFAULTS, *VISION} <= set(fields["vision_config"])
    assert {*LLM, "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"} < set(fields["llm_config"])
    again, vision = (each.from_pretrained(tmp_path) for each in (InternVLChatConfig, InternVisionConfig))
    assert written(again, tmp_path) == fields and again.max_dynamic_patch == 24 and again.select_layer == -2
    for inside in (again.vision_config, vision):
        assert isinstance(inside, InternVisionConfig) and inside.hidden_size == 48 and inside.image_size == 112


def test_names_that_every_release_reads(tmp_path):
    """4.57 writes a third key into the `rope_scaling` of a Llama, which 4.37 refuses; what was given stays."""
    config = make_config(llm=LLMS["llama"])
    assert LLMS["llama"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    make_model(config).to(torch.bfloat16).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for part in (fields, fields["llm_config"], fields["vision_config"]):
        assert part["torch_dtype"] == "bfloat16" and "dtype" not in part
    rope = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1000000.0}
    assert rope.items() <= fields["llm_config"].items()
    factors, others = {"short_factor": [1.0], "long_factor": [2.0]}, {"original_max_position_embeddings": 2048}
    others |= {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    for newer, expected in (
        ({**factors, **others, "rope_type": "longrope"}, {**others, "rope_scaling": {"type": "longrope", **factors}}),
        ({"rope_type": "default", "rope_theta": 5000.0}, {"rope_theta": 5000.0, "rope_scaling": None}),
    ):
        config = make_config()
        config.llm_config.rope_parameters = newer
        fields = config.to_dict()["llm_config"]
        assert expected.items() <= fields.items() and "rope_parameters" not in fields
    for kind, name in (("qwen3_moe", "num_experts"), ("gpt_oss", "num_local_experts")):
        fields = {"model_type": kind, "num_local_experts": 4, "_name_or_path": "/home/me"}
        _use_lasting_names(fields)
        assert fields == {"model_type": kind, name: 4}


def test_what_a_file_cannot_choose(toy_base):
    """The head is never tied, and attention is chosen where a model is loaded; other LLMs are refused."""
    flash = {"attn_implementation": "flash_attention_2", "_attn_implementation_autoset": True}
    llm = {**LLM, **flash, "tie_word_embeddings": True}
    model = make_model(make_config({**VISION, **flash}, llm, tie_word_embeddings=True))
    parts = model.language_model.config, model.vision_model.config
    assert {part._attn_implementation for part in parts} == {"sdpa"}
    tied = InternVLChatConfig(llm_config=type(model.config.llm_config)(tie_word_embeddings=True))
    for config in (model.config, tied, InternVLChatConfig.from_pretrained(toy_base)):
        assert config.tie_word_embeddings is config.llm_config.tie_word_embeddings is False
    assert make_config(llm={key: value for key, value in LLM.items() if key != "model_type"}).llm_config.vocab_size
    for fields in ({"model_type": "internlm2"}, {"architectures": ["InternLM2ForCausalLM"]}):
        with pytest.raises(ValueError, match=r"llm_config: model_type .*(internlm2|InternLM2).*Llama form"):
            InternVLChatConfig(llm_config={"hidden_size": 8, **fields})
