"""The random parts: the published layouts, of the large tower too, with bytes that the seed decides."""

import torch
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

from xtuner_plugins.hub.configuration_intern_vit import InternVisionConfig
from xtuner_plugins.hub.modeling_intern_vit import InternVisionModel
from xtuner_plugins.toy.models import write_random_parts

LARGE = dict(norm_type="rms_norm", qk_normalization=True, qkv_bias=False)


def test_every_tensor_has_its_name_shape_and_seed(tmp_path):
    contents = []
    for overrides, seed in ((LARGE, 0), ({}, 5), ({}, 0), ({}, 0)):
        vision, llm = write_random_parts(tmp_path, vision_overrides=overrides, seed=seed)
        want = InternVisionModel(InternVisionConfig.from_pretrained(vision)).state_dict()
        found = load_file(vision / "model.safetensors")
        assert {key: tensor.shape for key, tensor in found.items()} == {key: t.shape for key, t in want.items()}
        contents.append([(part / "model.safetensors").read_bytes() for part in (vision, llm)])
    _, other, one, again = contents
    assert one == again and all(mine != theirs for mine, theirs in zip(one, other, strict=True))
    model, info = Qwen2ForCausalLM.from_pretrained(llm, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    logits = model(torch.tensor([[1, 2, 3]])).logits.float()
    # Far from uniform, or an exchanged tensor would hide: the best token stands well above the rest.
    assert (logits.max(-1).values - logits.mean(-1)).min() > 1.0
