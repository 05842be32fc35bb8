"""Tiny models after a user's directory: same classes, tokenizer and template; only configs are read."""

import shutil

import pytest

from xtuner_plugins.checkpoints.io.reader import read_json
from xtuner_plugins.checkpoints.io.writer import write_json
from xtuner_plugins.checkpoints.loader import load_model
from xtuner_plugins.config_file import ConfigError
from xtuner_plugins.recipes.bases import BASES
from xtuner_plugins.selftest.twin import shrink_base, tokens_per_tile, write_twin
from xtuner_plugins.toy.bases import kind, write_tiny_base

KINDS = {kind(base): base for base in BASES.values()}


@pytest.mark.parametrize("base", KINDS.values(), ids=lambda base: base.name)
def test_each_kind_of_base_has_a_twin_that_opens(base, tmp_path):
    """At sizes as published: the toy of the kind gets the fields of the part at its true size."""
    own = write_tiny_base(base, tmp_path / "own")
    (own / "model.safetensors").unlink()
    twin = shrink_base(own, tmp_path / "twin")
    left, right = (read_json(path / "config.json") for path in (own, twin))
    assert left["template"] == right["template"] and left.get("projector_type") == right.get("projector_type")
    assert (own / "tokenizer.json").read_bytes() == (twin / "tokenizer.json").read_bytes()
    model, _ = load_model(twin, dtype=None)
    assert sum(p.numel() for p in model.parameters()) < 1e6 and tokens_per_tile(twin) <= 81
    assert model.config.vision_config.model_type == left["vision_config"]["model_type"]


def test_large_fields_become_small(toy_base, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(toy_base, own)
    fields = read_json(own / "config.json")
    fields["llm_config"] |= dict(hidden_size=3584, num_attention_heads=28, num_key_value_heads=4, num_hidden_layers=28)
    fields["vision_config"] |= dict(hidden_size=3200, num_attention_heads=25, num_hidden_layers=45, image_size=448)
    fields |= dict(force_image_size=448, select_layer=-4)
    write_json(own / "config.json", fields)
    config = load_model(shrink_base(own, tmp_path / "twin", last_layers=2), dtype=None)[0].config
    assert config.llm_config.num_key_value_heads == 2 and config.llm_config.num_hidden_layers == 2
    assert config.vision_config.num_hidden_layers == 7 and config.force_image_size == 112 and config.select_layer == -4


def test_a_base_that_is_not_there_is_taken_from_the_recipes(tmp_path):
    twin, made_after = write_twin("models/InternVL3-1B", tmp_path)
    assert (twin / "config.json").is_file() and "InternVL3-1B" in made_after and "isn't there" in made_after
    with pytest.raises(ConfigError, match="model directory 'models/mine' isn't there, and no recipe"):
        write_twin("models/mine", tmp_path / "other")
