"""The table of families: rows are complete, agree with transformers, and an unknown family is named with the known."""

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING

from xtuner_plugins.families import ENCODER_FAMILIES, LLM_FAMILIES, UnknownFamilyError, encoder_family, llm_family
from xtuner_plugins.hub.configuration_intern_vit import InternVisionConfig
from xtuner_plugins.hub.configuration_internvl_chat import InternVLChatConfig
from xtuner_plugins.hub.conversation import get_conv_template


def test_rows_agree_with_transformers():
    for row in LLM_FAMILIES.values():
        assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[row.model_type] == row.architecture
        fields = InternVLChatConfig(llm_config={"model_type": row.model_type}).to_dict()["llm_config"].keys()
        assert set(row.fields) - {"rope_scaling", "head_dim"} <= fields and get_conv_template(row.template).sep, row
    for row in ENCODER_FAMILIES.values():
        config = (InternVisionConfig if row.is_intern_vit else CONFIG_MAPPING[row.model_type])()
        assert all(hasattr(config, name) for name in row.fields), row
        assert row.is_intern_vit or MODEL_MAPPING[type(config)].__name__ == row.architecture


def test_families_are_found_or_the_known_ones_named():
    """By type, architecture or whole model."""
    assert encoder_family({"model_type": "clip"}) is encoder_family({"model_type": "clip_vision_model"})
    assert encoder_family({"architectures": ["InternVisionModel"]}).is_intern_vit
    with pytest.raises(UnknownFamilyError, match="vision tower x: model_type 'dinov2'.*known are intern_vit_6b, clip"):
        encoder_family({"model_type": "dinov2"}, "vision tower x")
    known = f"known are {', '.join(sorted(LLM_FAMILIES))} .* a row in xtuner_plugins/families.py"
    with pytest.raises(UnknownFamilyError, match=f"model_type 'bert' is not a language model.*{known}"):
        llm_family({"model_type": "bert"})
