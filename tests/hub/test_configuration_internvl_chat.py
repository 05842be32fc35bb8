"""What is read from and written to `config.json`."""

import copy
import json

import pytest
import torch

from xtuner_plugins.hub import InternVisionConfig, InternVLChatConfig

from .cases import LLM, LLMS, VISION, make_config, make_model


def written(config, path):
    config.save_pretrained(path)
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def test_constructible_without_arguments():
    config = InternVLChatConfig()
    assert config.vision_config.hidden_size == 3200 and config.vision_config.num_hidden_layers == 48
    assert config.llm_config.model_type == "qwen2" and config.hidden_size == config.llm_config.hidden_size
    assert (config.ps_version, config.downsample_ratio, config.select_layer) == ("v1", 0.5, -1)
    assert InternVLChatConfig.has_no_defaults_at_init and InternVLChatConfig.is_composition
    assert "internvl_chat" in repr(config)


def test_every_field_of_the_format_is_written(tmp_path):
    fields = written(make_config(), tmp_path)
    expected = {
        *("architectures", "model_type", "vision_config", "llm_config", "hidden_size", "tie_word_embeddings"),
        *("template", "select_layer", "ps_version", "downsample_ratio", "force_image_size", "pad2square"),
        *("dynamic_image_size", "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch"),
        *("use_backbone_lora", "use_llm_lora", "transformers_version", "auto_map"),
    }
    assert set(fields) == expected
    assert fields["auto_map"] == {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    assert set(VISION) < set(fields["vision_config"])
    vision_defaults = {"attention_dropout", "dropout", "drop_path_rate", "initializer_range", "layer_norm_eps"}
    assert vision_defaults < set(fields["vision_config"])
    assert {*LLM, "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"} < set(fields["llm_config"])
    assert fields["tie_word_embeddings"] is False and fields["llm_config"]["tie_word_embeddings"] is False


def test_fields_survive_a_round_trip(tmp_path):
    config = make_config(LLM and VISION, LLMS["llama"], min_dynamic_patch=2, max_dynamic_patch=24, select_layer=-2)
    first = written(config, tmp_path)
    again = InternVLChatConfig.from_pretrained(tmp_path)
    assert written(again, tmp_path) == first
    assert again.max_dynamic_patch == 24 and again.select_layer == -2
    assert isinstance(again.vision_config, InternVisionConfig)


def test_names_that_every_release_reads(tmp_path):
    model = make_model(make_config(llm=LLMS["llama"])).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for part in (fields, fields["llm_config"], fields["vision_config"]):
        assert part["torch_dtype"] == "bfloat16" and "dtype" not in part
    # Exactly these two keys: older releases refuse a third.
    assert fields["llm_config"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert fields["llm_config"]["rope_theta"] == 1000000.0


def test_what_was_given_stays_as_it_is():
    """4.57 writes a third key into the `rope_scaling` of a Llama, which 4.37 refuses in a file."""
    llm = copy.deepcopy(LLMS["llama"])
    config = make_config(llm=llm)
    assert llm == LLMS["llama"] and llm["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert config.llm_config.rope_scaling is not llm["rope_scaling"]


def test_names_of_transformers_5_are_written_as_all_read_them():
    config = make_config()
    longrope = {"short_factor": [1.0], "long_factor": [2.0]}
    config.llm_config.rope_parameters = {
        **longrope,
        "rope_type": "longrope",
        "rope_theta": 5000.0,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 2048,
    }
    fields = config.to_dict()["llm_config"]
    assert fields["rope_theta"] == 5000.0 and fields["rope_scaling"] == {"type": "longrope", **longrope}
    assert fields["partial_rotary_factor"] == 0.5 and fields["original_max_position_embeddings"] == 2048
    assert "rope_parameters" not in fields

    config.llm_config.rope_parameters = {"rope_type": "default", "rope_theta": 5000.0}
    fields = config.to_dict()["llm_config"]
    assert fields["rope_theta"] == 5000.0 and fields["rope_scaling"] is None


def test_an_attention_written_in_the_file_is_not_asked_for():
    llm = {**LLM, "attn_implementation": "flash_attention_2", "_attn_implementation_autoset": True}
    model = make_model(make_config({**VISION, "attn_implementation": "flash_attention_2"}, llm))
    assert model.language_model.config._attn_implementation == "sdpa"
    assert model.vision_model.config._attn_implementation == "sdpa"


def test_the_head_is_never_tied():
    config = make_config(llm={**LLM, "tie_word_embeddings": True}, tie_word_embeddings=True)
    assert config.tie_word_embeddings is False and config.llm_config.tie_word_embeddings is False


def test_llm_by_architecture_alone():
    llm = {key: value for key, value in LLM.items() if key != "model_type"}
    assert make_config(llm=llm).llm_config.model_type == "qwen2"
    for fields in ({"model_type": "internlm2"}, {"architectures": ["InternLM2ForCausalLM"]}):
        with pytest.raises(ValueError, match=r"llm_config: model_type .*(internlm2|InternLM2).*Llama form"):
            InternVLChatConfig(llm_config={"hidden_size": 8, **fields})


def test_configs_may_be_given_ready_made():
    config = make_config()
    again = InternVLChatConfig(config.vision_config, config.llm_config)
    assert again.vision_config is config.vision_config and again.llm_config is config.llm_config
