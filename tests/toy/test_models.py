"""The random parts: the published layouts, of the large tower too, with bytes that the seed decides."""

import torch
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

from xtuner_plugins.hub.configuration_intern_vit import InternVisionConfig
from xtuner_plugins.hub.modeling_intern_vit import InternVisionModel
from xtuner_plugins.toy.models import write_random_parts

LARGE = dict(norm_type="rms_norm", qk_normalization=True, qkv_bias=False)


def test_every_tensor_has_its_name_shape_and_seed(tmp_path):
    for name, overrides in (("small", {}), ("large", LARGE)):
        vision, llm = write_random_parts(tmp_path / name, vision_overrides=overrides)
        want = InternVisionModel(InternVisionConfig.from_pretrained(vision)).state_dict()
        found = load_file(vision / "model.safetensors")
        assert {key: tensor.shape for key, tensor in found.items()} == {key: t.shape for key, t in want.items()}
    model, info = Qwen2ForCausalLM.from_pretrained(llm, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    logits = model(torch.tensor([[1, 2, 3]])).logits.float()
    # Far from uniform, or an exchanged tensor would hide: the best token stands well above the rest.
    assert (logits.max(-1).values - logits.mean(-1)).min() > 1.0
    for again, other in zip(
        write_random_parts(tmp_path / "a"), write_random_parts(tmp_path / "b", seed=5), strict=True
    ):
        read = [(path / "model.safetensors").read_bytes() for path in (tmp_path / "small" / again.name, again, other)]
        assert read[0] == read[1] != read[2]
