"""Tiny models in the layouts of the real ones: a standalone InternViT directory and a Qwen2 directory."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from xtuner_plugins.hub.configuration_intern_vit import InternVisionConfig
from xtuner_plugins.hub.modeling_intern_vit import InternVisionModel
from xtuner_plugins.toy.tokenizer import build_tokenizer
from xtuner_plugins.weights.writer import write_json

VISION_CONFIG: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 64,
    "image_size": 112,  # 8 x 8 patches of 14, 4 x 4 = 16 image tokens after the pixel shuffle
    "initializer_factor": 0.1,
    "initializer_range": 1e-10,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-6,
    "model_type": "intern_vit_6b",  # the published name of every InternViT, the 300M one too
    "norm_type": "layer_norm",
    "num_attention_heads": 4,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "qk_normalization": False,
    "qkv_bias": True,
    "torch_dtype": "bfloat16",
    "use_flash_attn": False,
}

LLM_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": None,  # from the tokenizer
    "eos_token_id": None,  # from the tokenizer
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": None,  # the tokenizer's length, rounded up as in Qwen2.5 (which has 271 spare rows)
}

VOCAB_MULTIPLE = 64
# The order in which random weights are drawn: the same seed gives the same bytes, whatever order a model declares.
DRAWN = """class_embedding position_embedding patch_embedding qkv q_norm k_norm proj norm1 norm2 fc1 fc2 ls1 ls2
    embed_tokens input_layernorm q_proj k_proj v_proj o_proj post_attention_layernorm gate_proj up_proj down_proj
    norm lm_head""".split()


def write_random_parts(
    root: str | Path,
    *,
    seed: int = 0,
    vision_overrides: Mapping[str, Any] | None = None,
    llm_overrides: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Writes a tiny InternViT and a tiny Qwen2 with random weights, in the published layouts.

    The weights are scaled so that outputs are far from zero and from uniform: a swapped or missing tensor shows.

    Args:
        root: Gets `vision/` and `llm/`.
        seed: The same seed gives the same bytes on disk.
        vision_overrides: Fields of the vision `config.json` that differ from `VISION_CONFIG`.
        llm_overrides: Fields of the LLM's `config.json` that differ from `LLM_CONFIG`.

    Returns:
        `(vision_dir, llm_dir)`, ready for `tools/build_base_model.py`.
    """
    vision_dir, llm_dir = Path(root) / "vision", Path(root) / "llm"
    vision = {**VISION_CONFIG, **(vision_overrides or {})}
    write_dir(vision_dir, vision, random_tensors(shapes_of(vision), seed))
    build_tokenizer(llm_dir)
    llm = llm_config(llm_dir, llm_overrides)
    write_llm_dir(llm_dir, llm, random_tensors(shapes_of(llm), seed + 1))
    return vision_dir, llm_dir


def llm_config(tokenizer_dir: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tiny Qwen2's `config.json`; token ids and vocabulary size follow the tokenizer."""
    config = {**LLM_CONFIG, **(overrides or {})}
    state = json.loads((Path(tokenizer_dir) / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in state["added_tokens"]}
    rows = math.ceil((max(special.values()) + 1) / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    own = {"vocab_size": rows, "bos_token_id": special["<|endoftext|>"], "eos_token_id": special["<|im_end|>"]}
    return config | {name: value for name, value in own.items() if config[name] is None}


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a standalone InternViT or of a Qwen2 with this config, in the drawn order."""
    with torch.device("meta"):
        if config["model_type"] == "qwen2":
            network = Qwen2ForCausalLM(Qwen2Config(**config))
        else:
            network = InternVisionModel(InternVisionConfig(**config))
    absent = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name not in absent}
    return {name: shapes[name] for name in sorted(shapes, key=_place)}


def _place(name: str) -> tuple[int, int]:
    """Layer, and index within the layer, of a tensor; a weight and its bias share one."""
    parts = name.split(".")
    layer = next((int(part) for part in parts if part.isdigit()), -1 if "embed" in name else sys.maxsize)
    return layer, next(DRAWN.index(part) for part in reversed(parts) if part in DRAWN)


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Random fp32 tensors of these shapes: matrices keep the variance of their input, gains are around 1.

    Gains and biases are random too, so that a test sees when one is skipped or swapped.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...], std: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std

    def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            is_gain = name.endswith(("ls1", "ls2")) or ("norm" in name and name.endswith(".weight"))
            return normal(shape, 0.1) + (1.0 if is_gain else 0.0)
        if name.endswith(("class_embedding", "position_embedding")):
            return normal(shape, 0.5)
        return normal(shape, math.prod(shape[1:]) ** -0.5)

    return {name: make(name, shape) for name, shape in shapes.items()}


def write_llm_dir(path: str | Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """Writes a Qwen2's configs and weights beside its tokenizer, the weights in the config's `torch_dtype`."""
    bos, eos = config["bos_token_id"], config["eos_token_id"]
    generation = {"bos_token_id": bos, "do_sample": False, "eos_token_id": [eos, bos], "pad_token_id": bos}
    path = write_dir(path, config, tensors)
    write_json(path / "generation_config.json", generation)
    return path


def write_dir(path: str | Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """Writes `config.json` and the weights, in the config's `torch_dtype`: a standalone InternViT directory is that."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, config["torch_dtype"])
    ready = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    save_file(ready, path / "model.safetensors", metadata={"format": "pt"})
    write_json(path / "config.json", dict(config))
    return path
