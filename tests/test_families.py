"""The table of families: rows are complete, agree with transformers, and an unknown family is named with the known."""

import inspect

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING

from xtuner_plugins.families import (
    ENCODER_FAMILIES,
    LLM_FAMILIES,
    PARTS,
    UnknownFamilyError,
    encoder_family,
    llm_family,
)
from xtuner_plugins.hub import InternVisionConfig, get_conv_template
from xtuner_plugins.models import VisionLanguageModel


@pytest.mark.parametrize("row", LLM_FAMILIES.values(), ids=LLM_FAMILIES)
def test_llm_row_agrees_with_transformers(row):
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[row.model_type] == row.architecture
    fields = CONFIG_MAPPING[row.model_type]().to_dict()
    assert [name for name in row.fields if name not in fields and name not in ("rope_scaling", "head_dim")] == []
    assert get_conv_template(row.template).sep


@pytest.mark.parametrize("row", ENCODER_FAMILIES.values(), ids=ENCODER_FAMILIES)
def test_encoder_row_agrees_with_its_class(row):
    config_class = InternVisionConfig if row.is_intern_vit else CONFIG_MAPPING[row.model_type]
    config = config_class()
    assert [name for name in row.fields if not hasattr(config, name)] == []
    if not row.is_intern_vit:
        assert MODEL_MAPPING[config_class].__name__ == row.architecture


def test_families_are_found_by_type_architecture_and_whole_model():
    assert llm_family({"model_type": "phi3"}).template == "phi3-chat"
    assert encoder_family({"model_type": "clip"}) is encoder_family({"model_type": "clip_vision_model"})
    assert encoder_family({"architectures": ["InternVisionModel"]}).is_intern_vit


def test_parts_are_frozen_as_the_model_freezes_them():
    said = inspect.signature(VisionLanguageModel).parameters
    assert all(said[f"freeze_{name}"].default == part.is_frozen for name, part in PARTS.items())


def test_unknown_families_name_the_known_ones():
    with pytest.raises(UnknownFamilyError, match="vision tower x: model_type 'dinov2'.*known are intern_vit_6b, clip"):
        encoder_family({"model_type": "dinov2"}, "vision tower x")
    known = ", ".join(sorted(LLM_FAMILIES))
    with pytest.raises(UnknownFamilyError, match=f"model_type 'bert' is not a language model.*known are {known}"):
        llm_family({"model_type": "bert"})
