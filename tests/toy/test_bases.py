"""Every recipe's base has a tiny twin: `tests/recipes/test_leaves.py` trains all of them."""

from xtuner_plugins.datasets.base import read_base
from xtuner_plugins.planning.published import BASES
from xtuner_plugins.toy.bases import kind, write_tiny_base


def test_kinds_tell_what_differs_in_code():
    kinds = {name: kind(base) for name, base in BASES.items()}
    assert kinds["InternVL3-1B"] == kinds["InternVL2_5-1B"]
    assert kinds["InternVL2_5-26B"] == ("intern_vit_6b_rms", "internlm2", None, "internvl2_5", True)
    assert kinds["CLIP-Qwen-7B"] == ("clip_vision_model", "qwen", "mlp", "internvl2_5", False)
    assert kinds["SigLIP-Qwen2.5-0.5B"] != kinds["SigLIP-Qwen2.5-0.5B-tiled"]


def test_a_twin_is_small_and_of_its_kind(tmp_path):
    config = read_base(write_tiny_base(BASES["CLIP-Qwen-7B"], tmp_path))
    assert config.vision_config.model_type == "clip_vision_model" and config.vision_config.hidden_size == 64
    assert config.llm_config.model_type == "qwen2" and config.projector_type == "mlp"
