"""Reads DINOv2 as an InternViT: the same blocks, so every program that knows InternViT runs it.

Both are pre-norm transformers with layer scales. What differs are names, separate matrices for query, key and value,
position embeddings for another image size, and DINOv2's final norm. Features are taken before that norm: InternViT has
none, and the projector begins with a norm of its own. `transformers.Dinov2Model` gives the same hidden states.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...weights.lazy import Joined, LazyTensor, MemoryTensor
from ...weights.reading import CheckpointError, open_weights, read_json

MODEL_TYPE = "dinov2"
# Name in a layer of InternViT: name in DINOv2.
LAYER_NAMES = {
    **{
        f"{name}.{kind}": f"{name}.{kind}"
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    },
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "ls1": "layer_scale1.lambda1",
    "ls2": "layer_scale2.lambda1",
}


def check_tile_size(size: int, patch_size: int, directory: Path) -> None:
    """Raises `ValueError` where a tile isn't a whole number of two patches, which the projector joins."""
    if size % (2 * patch_size):
        raise ValueError(f"tile_size = {size} must be a multiple of {2 * patch_size}: two patches of {directory}")


def read_dinov2(directory: Path, size: int) -> tuple[dict, dict[str, LazyTensor]]:
    """Fields of InternViT's config, and tensors by its names (without prefix).

    Args:
        directory: of a `Dinov2Model`, or of a model around it.
        size: side of a tile in pixels, a multiple of two patches.

    Raises:
        CheckpointError: another feed-forward layer than InternViT's, or tensors are missing.
        ValueError: the tile size doesn't fit the patches.
    """
    from transformers import Dinov2Config

    stored = read_json(directory / "config.json")
    config = Dinov2Config(**{name: value for name, value in stored.items() if name in Dinov2Config().to_dict()})
    if config.use_swiglu_ffn:
        raise CheckpointError(
            f"vision tower: {directory} has SwiGLU layers, which InternViT lacks; take a smaller DINOv2"
        )
    check_tile_size(size, config.patch_size, directory)
    held = {name.removeprefix("dinov2."): tensor for name, tensor in open_weights(directory).items()}
    try:
        tensors = _embeddings(held, size // config.patch_size)
        for layer in range(config.num_hidden_layers):
            tensors |= _layer(held, f"encoder.layer.{layer}.", f"encoder.layers.{layer}.")
    except KeyError as error:
        raise CheckpointError(f"vision tower: {directory} says dinov2, but has no tensor {error}") from None
    fields = {
        "model_type": "intern_vit_6b",
        "intermediate_size": int(config.hidden_size * config.mlp_ratio),
        "image_size": size,
        "norm_type": "layer_norm",
        "qk_normalization": False,
        "use_flash_attn": True,
    }
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "patch_size", "qkv_bias")
    fields |= {name: getattr(config, name) for name in (*same, "hidden_act", "layer_norm_eps", "initializer_range")}
    return fields, tensors


def _embeddings(held: dict[str, LazyTensor], side: int) -> dict[str, LazyTensor]:
    """With position embeddings for ``side`` x ``side`` patches, resized as transformers does for another image size."""
    positions = held["embeddings.position_embeddings"].read().float()
    own = int((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].unflatten(1, (own, own)).permute(0, 3, 1, 2)
    if side != own:
        grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2)
    projection = "embeddings.patch_embeddings.projection"
    return {
        "embeddings.class_embedding": held["embeddings.cls_token"],
        "embeddings.position_embedding": MemoryTensor(torch.cat([positions[:, :1], patches], 1)),
        "embeddings.patch_embedding.weight": held[f"{projection}.weight"],
        "embeddings.patch_embedding.bias": held[f"{projection}.bias"],
    }


def _layer(held: dict[str, LazyTensor], theirs: str, ours: str) -> dict[str, LazyTensor]:
    tensors = {ours + name: held[theirs + other] for name, other in LAYER_NAMES.items()}
    for kind in ("weight", "bias"):
        parts = [held.get(f"{theirs}attention.attention.{name}.{kind}") for name in ("query", "key", "value")]
        if kind == "bias" and parts == [None] * 3:  # qkv_bias=False
            continue
        if None in parts:
            raise KeyError(f"{theirs}attention.attention.*.{kind}")
        tensors[f"{ours}attn.qkv.{kind}"] = Joined(parts)
    return tensors
