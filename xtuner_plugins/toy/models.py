"""Tiny models in the layouts of the real ones: a standalone InternViT directory and a Qwen2 directory."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from xtuner_plugins.toy.tokenizer import build_tokenizer
from xtuner_plugins.weights.writer import DTYPES, write_json

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
    vision = vision_config(vision_overrides)
    write_vision_dir(vision_dir, vision, random_tensors(vision_shapes(vision), seed))
    build_tokenizer(llm_dir)
    llm = llm_config(llm_dir, llm_overrides)
    write_llm_dir(llm_dir, llm, random_tensors(llm_shapes(llm), seed + 1))
    return vision_dir, llm_dir


def vision_config(overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tiny InternViT's `config.json` with some fields changed."""
    return {**VISION_CONFIG, **(overrides or {})}


def llm_config(tokenizer_dir: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tiny Qwen2's `config.json`; token ids and vocabulary size follow the tokenizer."""
    config = {**LLM_CONFIG, **(overrides or {})}
    state = json.loads((Path(tokenizer_dir) / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in state["added_tokens"]}
    rows = math.ceil((max(special.values()) + 1) / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    own = {"vocab_size": rows, "bos_token_id": special["<|endoftext|>"], "eos_token_id": special["<|im_end|>"]}
    return config | {name: value for name, value in own.items() if config[name] is None}


def vision_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a standalone InternViT with this config."""
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    num_patches, row = (config["image_size"] // patch) ** 2, (width,)
    norms = [f"{norm}.{part}" for norm in ("norm1", "norm2") for part in ("weight", "bias")]
    layer = {"attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,)}
    layer |= {"attn.q_norm.weight": row, "attn.k_norm.weight": row}
    layer |= {"attn.proj.weight": (width, width), "attn.proj.bias": row, **dict.fromkeys(norms, row)}
    layer |= {"mlp.fc1.weight": (inner, width), "mlp.fc1.bias": (inner,)}
    layer |= {"mlp.fc2.weight": (width, inner), "mlp.fc2.bias": row, "ls1": row, "ls2": row}
    absent = [] if config["qkv_bias"] else ["attn.qkv.bias"]
    absent += [] if config["qk_normalization"] else ["attn.q_norm.weight", "attn.k_norm.weight"]
    absent += [] if config["norm_type"] == "layer_norm" else ["norm1.bias", "norm2.bias"]
    return {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.position_embedding": (1, num_patches + 1, width),
        "embeddings.patch_embedding.weight": (width, config["num_channels"], patch, patch),
        "embeddings.patch_embedding.bias": row,
    } | _in_each_layer("encoder.layers", config, {name: layer[name] for name in layer if name not in absent})


def llm_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Qwen2 with this config; a head only where it isn't tied."""
    width, inner, row = config["hidden_size"], config["intermediate_size"], (config["hidden_size"],)
    kv_width = width // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {"input_layernorm.weight": row}
    for name, rows in (("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)):
        layer |= {f"self_attn.{name}.weight": (rows, width), f"self_attn.{name}.bias": (rows,)}
    layer |= {"self_attn.o_proj.weight": (width, width), "post_attention_layernorm.weight": row}
    layer |= {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width)}
    layer |= {"mlp.down_proj.weight": (width, inner)}
    words = (config["vocab_size"], width)
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": words}
    layers = _in_each_layer("model.layers", config, layer)
    return {"model.embed_tokens.weight": words, **layers, "model.norm.weight": row, **head}


def _in_each_layer(prefix: str, config: Mapping[str, Any], layer: Mapping[str, tuple]) -> dict[str, tuple]:
    numbers = range(config["num_hidden_layers"])
    return {f"{prefix}.{number}.{name}": shape for number in numbers for name, shape in layer.items()}


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


def write_vision_dir(path: str | Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """Writes a standalone InternViT directory, the weights in the config's `torch_dtype`."""
    return _write_dir(path, config, tensors, vision_shapes(config))


def write_llm_dir(path: str | Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """Writes a Qwen2's configs and weights beside its tokenizer, the weights in the config's `torch_dtype`."""
    path = _write_dir(path, config, tensors, llm_shapes(config))
    generation = {
        "bos_token_id": config["bos_token_id"],
        "do_sample": False,
        "eos_token_id": [config["eos_token_id"], config["bos_token_id"]],
        "pad_token_id": config["bos_token_id"],
    }
    write_json(path / "generation_config.json", generation)
    return path


def _write_dir(path: str | Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], shapes: dict) -> Path:
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert found == shapes, f"{path}: not as the config says: {sorted(found.items() ^ shapes.items())[:4]}"
    dtype = DTYPES[config["torch_dtype"]]
    ready = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    save_file(ready, path / "model.safetensors", metadata={"format": "pt"})
    write_json(path / "config.json", dict(config))
    return path
