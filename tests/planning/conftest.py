"""A model small enough to work out by hand: 2 blocks each, width 8 before the projector and 16 after it."""

import pytest

from xtuner_plugins.planning.job import Batch, Job
from xtuner_plugins.planning.shapes import shape_of

VISION = dict(model_type="intern_vit_6b", hidden_size=8, intermediate_size=32, num_attention_heads=2)
LLM = dict(model_type="qwen2", hidden_size=16, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture
def warm_up():
    """The projector trains; 10 tokens, 1 tile, 4 labels."""
    vision, llm = dict(VISION, num_hidden_layers=2), dict(LLM, num_hidden_layers=2, vocab_size=100)
    vision |= dict(image_size=28, patch_size=14)
    shape = shape_of({"vision_config": vision, "llm_config": llm, "downsample_ratio": 0.5})
    return Job(shape, frozenset({"projector"}), (Batch(10, 1, 4),))
