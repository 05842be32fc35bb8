"""Names, order of rows and fields of a language model's GGUF file."""

import gguf
import pytest
import torch

from xtuner_plugins.checkpoints.errors import CheckpointError
from xtuner_plugins.checkpoints.io.tensors import MemoryTensor
from xtuner_plugins.checkpoints.llama_cpp import language_model

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 16,
}
QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"


def test_llamas_rotary_pairs_are_neighbors():
    rows = torch.arange(32).float()[:, None].repeat(1, 32)
    (found,) = language_model.tensors(LLAMA, {QUERY: MemoryTensor(rows)}).values()
    assert found.read()[:10, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12]
    whole = found.read()
    assert torch.equal(found.read_flat(5 * 32, 20 * 32).view(15, 32), whole[5:20])  # a block that cuts heads
    qwen = {**LLAMA, "model_type": "qwen2"}
    assert torch.equal(language_model.tensors(qwen, {QUERY: MemoryTensor(rows)})["blk.0.attn_q.weight"].read(), rows)


def test_llama3_scaling_becomes_a_tensor():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {**LLAMA, "rope_scaling": {**scaling, "original_max_position_embeddings": 32}}
    factors = language_model.tensors(config, {})["rope_freqs.weight"].read()
    # Wave lengths 6.3 to 6283 against an original context of 32: the first is kept, the last divided by the factor.
    assert factors[0] == 1 and factors[-1] == 8 and (factors.diff() >= 0).all()


def test_what_is_not_written_is_refused():
    with pytest.raises(CheckpointError, match="a GGUF of phi3 is not written here, only of qwen2, qwen3, llama"):
        language_model.architecture({"model_type": "phi3"})
    with pytest.raises(CheckpointError, match="q_norm.weight has no name in a GGUF of llama"):
        key = "language_model.model.layers.0.self_attn.q_norm.weight"
        language_model.tensors(LLAMA, {key: MemoryTensor(torch.ones(8))})
    writer = gguf.GGUFWriter(None, "llama")
    with pytest.raises(CheckpointError, match="rope_scaling 'yarn' is not written here"):
        language_model.add_fields(writer, {**LLAMA, "rope_scaling": {"type": "yarn", "factor": 2.0}})


def test_dynamic_scaling_is_told():
    writer = gguf.GGUFWriter(None, "llama")
    (note,) = language_model.add_fields(writer, {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert "keep contexts below 64 tokens" in note
