"""Every recipe's base has a tiny twin: `tests/recipes/test_leaves.py` trains all of them."""

from xtuner_plugins.planning.published import BASES
from xtuner_plugins.toy.bases import kind


def test_kinds_tell_what_differs_in_code():
    kinds = {name: kind(base) for name, base in BASES.items()}
    assert kinds["InternVL3-1B"] == kinds["InternVL2_5-1B"]
    assert kinds["InternVL2_5-26B"] == ("intern_vit_6b_rms", "internlm2", None, "internvl2_5", True)
    assert kinds["CLIP-Qwen-7B"] == ("clip_vision_model", "qwen", "mlp", "internvl2_5", False)
    assert kinds["SigLIP-Qwen2.5-0.5B"] != kinds["SigLIP-Qwen2.5-0.5B-tiled"]
