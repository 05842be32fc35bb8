import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2ForCausalLM

from xtuner_plugins.toy.models import write_random_parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_random_parts(tmp_path_factory.mktemp("parts"))


def test_qwen2_opens_in_transformers_with_every_tensor(parts):
    model, info = Qwen2ForCausalLM.from_pretrained(parts[1], output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(parts[1])
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) <= model.config.vocab_size and model.config.vocab_size % 64 == 0
    logits = model(torch.tensor([[1, 2, 3]])).logits.float()
    # Far from uniform, or an exchanged tensor would hide: the best token stands well above the rest.
    assert (logits.max(-1).values - logits.mean(-1)).min() > 1.0


def test_vision_keys_are_those_of_the_standalone_releases(parts):
    tensors = load_file(parts[0] / "model.safetensors")
    # 4 embeddings and 14 tensors in each of 2 layers.
    assert len(tensors) == 4 + 2 * 14
    assert all(key.startswith(("embeddings.", "encoder.layers.")) for key in tensors)
    assert tensors["embeddings.position_embedding"].shape == (1, 65, 64)
    assert tensors["encoder.layers.1.attn.qkv.weight"].shape == (192, 64)
    with safe_open(parts[0] / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_vision_variant_of_the_large_tower(tmp_path):
    overrides = dict(norm_type="rms_norm", qk_normalization=True, qkv_bias=False, torch_dtype="float32")
    vision, _ = write_random_parts(tmp_path, vision_overrides=overrides)
    tensors = load_file(vision / "model.safetensors")
    assert tensors["encoder.layers.0.attn.q_norm.weight"].shape == (64,)
    assert not any(key.endswith(("qkv.bias", "norm1.bias", "norm2.bias")) for key in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert json.loads((vision / "config.json").read_text())["qk_normalization"] is True


def test_seed_decides_the_bytes(parts, tmp_path):
    same = write_random_parts(tmp_path / "same")
    other = write_random_parts(tmp_path / "other", seed=5)
    for mine, again, different in zip(parts, same, other, strict=True):
        read = [(path / "model.safetensors").read_bytes() for path in (mine, again, different)]
        assert read[0] == read[1] != read[2]
