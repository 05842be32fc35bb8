"""Each family's tiny directory opens as a language model (training and export: tests/export/test_families.py)."""

import pytest

from xtuner_plugins.toy.language_models import write_llm
from xtuner_plugins.weights.model_view import open_language_model

RUNS_AS = {"internlm2": "llama", "qwen": "qwen2"}


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "llama", "mistral", "phi3", "internlm2", "qwen"])
def test_a_directory_opens(family, toy_parts, tmp_path):
    config, tensors = open_language_model(write_llm(family, tmp_path / "llm", toy_parts[1]))
    assert config["model_type"] == RUNS_AS.get(family, family) and config["hidden_size"] == 64
    assert len(tensors["model.embed_tokens.weight"].shape) == 2
