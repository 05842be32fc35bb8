"""The official format: complete configs, whatever a published file leaves out."""

from xtuner_plugins.weights import official

VISION, LLM = {"image_size": 112, "patch_size": 14}, {"model_type": "phi3", "hidden_size": 64, "dtype": "float16"}


def test_missing_fields_mean_what_the_config_class_says():
    complete = official.read_config({"vision_config": {"image_size": 448}, "llm_config": {"model_type": "qwen2"}}, ".")
    assert (complete["ps_version"], complete["downsample_ratio"], complete["select_layer"]) == ("v1", 0.5, -1)
    assert (complete["force_image_size"], complete["max_dynamic_patch"]) == (448, 6)
    assert complete["vision_config"]["hidden_size"] == 3200 and complete["llm_config"] == {"model_type": "qwen2"}


def test_internlm2_is_read_as_llama_and_tiling_may_be_off():
    fields = {"vision_config": {}, "llm_config": {"model_type": "internlm2", "bias": False, "num_attention_heads": 4}}
    assert official.read_config(fields, ".")["llm_config"]["model_type"] == "llama"
    assert official.keys({**fields, "llm_config": {"model_type": "llama"}}) is None
    limits = {"dynamic_image_size": False, "min_dynamic_patch": 3, "max_dynamic_patch": 12}
    assert official.tile_limits(limits) == (1, 1)
    assert official.tile_limits({**limits, "dynamic_image_size": True}) == (3, 12)


def test_made_configs():
    for max_tiles in (1, 12):
        made = official.make_config(VISION, LLM, dtype="bfloat16", max_tiles=max_tiles)
        assert official.detect(made) and made["template"] == "phi3-chat"  # the family's own
        assert "projector_type" not in made and made["use_thumbnail"] is True
        own = {"tie_word_embeddings": False, "torch_dtype": "bfloat16"}
        assert made["llm_config"] == {"model_type": "phi3", "hidden_size": 64, **own}
        assert official.tile_limits(made) == (1, max_tiles) and official.num_image_tokens(made) == 16
        plain = official.make_config(VISION, LLM, dtype="bfloat16", max_tiles=max_tiles, projector_type="mlp")
        assert plain["projector_type"] == "mlp" and plain["use_thumbnail"] is (max_tiles > 1)
        assert official.num_image_tokens(plain) == 64 and "image_fold" in made and made["tie_word_embeddings"] is False
