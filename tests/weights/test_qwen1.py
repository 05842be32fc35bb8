"""Qwen of the first generation as Qwen2: names, config, and weights that trade places."""

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.weights.language_models import write_llm
from xtuner_plugins.weights.model_view import open_language_model
from xtuner_plugins.weights.reading import read_json


def test_directory(toy_parts, tmp_path):
    """A published directory opens as Qwen2, without the buffers that old releases stored."""
    folder = write_llm("qwen", tmp_path / "llm", toy_parts[1])
    held = load_file(folder / "model.safetensors")
    assert read_json(folder / "config.json")["model_type"] == "qwen"
    held["transformer.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(held, folder / "model.safetensors")
    config, tensors = open_language_model(folder)
    with init_empty_weights():
        model = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in config.items() if k != "architectures"}))
    assert {k: t.shape for k, t in tensors.items()} == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert (config["rope_theta"], config["max_position_embeddings"], config["use_sliding_window"]) == (
        10000.0,
        512,
        False,
    )
    gate = tensors["model.layers.0.mlp.gate_proj.weight"].read()
    assert torch.equal(gate, held["transformer.h.0.mlp.w2.weight"])
