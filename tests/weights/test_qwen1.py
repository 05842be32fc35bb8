"""Qwen of the first generation as Qwen2: names, config, and weights that trade places."""

import torch
from accelerate import init_empty_weights
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.weights.test_mapping import SIZES, same
from xtuner_plugins.weights import qwen1
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.model_view import open_language_model
from xtuner_plugins.weights.reading import read_json


def test_names():
    layer = {
        "ln_1.weight": (32,),
        "ln_2.weight": (32,),
        "attn.c_attn.weight": (96, 32),
        "attn.c_attn.bias": (96,),
        "attn.c_proj.weight": (32, 32),
        "mlp.w1.weight": (48, 32),
        "mlp.w2.weight": (48, 32),
        "mlp.c_proj.weight": (32, 48),
    }
    shapes = {f"transformer.h.{i}.{k}": v for i in range(2) for k, v in layer.items()}
    shapes |= {"transformer.wte.weight": (40, 32), "transformer.ln_f.weight": (32,), "lm_head.weight": (40, 32)}
    tensors = {k: MemoryTensor(torch.randn(s)) for k, s in shapes.items()}
    qwen2 = qwen1.KEYS.to_right(tensors)
    with init_empty_weights():
        model = Qwen2ForCausalLM(Qwen2Config(**{**SIZES, "num_key_value_heads": 4}, tie_word_embeddings=False))
    assert {k: t.shape for k, t in qwen2.items()} == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert same(qwen1.KEYS.to_left(qwen2), tensors)
    gate = qwen2["model.layers.0.mlp.gate_proj.weight"].read()
    assert torch.equal(gate, tensors["transformer.h.0.mlp.w2.weight"].read())


def test_config():
    fields = qwen1.read_config(
        {
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "layer_norm_epsilon": 1e-6,
            "rotary_emb_base": 500,
            "seq_length": 2048,
            "vocab_size": 99,
        }
    )
    config = Qwen2Config(**fields)
    assert (config.intermediate_size, config.num_key_value_heads, config.rms_norm_eps) == (96, 4, 1e-6)
    assert (fields["rope_theta"], config.max_position_embeddings, config.vocab_size) == (500.0, 2048, 99)
    assert config.use_sliding_window is False and config.tie_word_embeddings is False


def test_directory(toy_parts, tmp_path):
    """A published directory opens as Qwen2, without the buffers that old releases stored."""
    from safetensors.torch import load_file, save_file

    from tests.weights.language_models import write_llm

    folder = write_llm("qwen", tmp_path / "llm", toy_parts[1])
    held = load_file(folder / "model.safetensors")
    assert read_json(folder / "config.json")["model_type"] == "qwen"
    held["transformer.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(held, folder / "model.safetensors")
    config, tensors = open_language_model(folder)
    with init_empty_weights():
        model = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in config.items() if k != "architectures"}))
    assert {k: t.shape for k, t in tensors.items()} == {k: tuple(v.shape) for k, v in model.state_dict().items()}
