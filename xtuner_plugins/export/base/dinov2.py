"""Reads DINOv2 as an InternViT: the same blocks, so every program that knows InternViT runs it.

Both are pre-norm transformers with layer scales. What differs are names, separate matrices for query, key and value,
position embeddings for another image size, and DINOv2's final norm. Features are taken before that norm: InternViT has
none, and the projector begins with a norm of its own. `transformers.Dinov2Model` gives the same hidden states.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...weights.lazy import LazyTensor, MemoryTensor
from ...weights.mapping import KeyMapping, Row
from ...weights.reading import CheckpointError, open_weights, read_json

MODEL_TYPE = "dinov2"
_VIT, _DINO = "encoder.layers.{i}.", "encoder.layer.{i}."
_POSITIONS = "embeddings.position_embedding"
KEYS = KeyMapping(
    [
        Row("embeddings.class_embedding", "embeddings.cls_token"),
        Row(_POSITIONS, "embeddings.position_embeddings"),
        Row("embeddings.patch_embedding.{p}", "embeddings.patch_embeddings.projection.{p}"),
        Row(_VIT + "attn.qkv.{p}", tuple(f"{_DINO}attention.attention.{n}.{{p}}" for n in ("query", "key", "value"))),
        Row(_VIT + "attn.proj.{p}", _DINO + "attention.output.dense.{p}"),
        Row(_VIT + "ls1", _DINO + "layer_scale1.lambda1"),
        Row(_VIT + "ls2", _DINO + "layer_scale2.lambda1"),
        *(Row(f"{_VIT}{name}.{{p}}", f"{_DINO}{name}.{{p}}") for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")),
    ],
    "InternViT",
    "DINOv2",
)


def check_tile_size(size: int, patch_size: int, directory: Path) -> None:
    """Raises `ValueError` where a tile isn't a whole number of two patches, which the projector joins."""
    if size % (2 * patch_size):
        raise ValueError(f"tile_size = {size} must be a multiple of {2 * patch_size}: two patches of {directory}")


def read_dinov2(directory: Path, size: int) -> tuple[dict, dict[str, LazyTensor]]:
    """Fields of InternViT's config, and tensors by its names (without prefix).

    Args:
        directory: of a `Dinov2Model`, or of a model around it.
        size: side of a tile in pixels, a multiple of two patches (else `ValueError`).

    Raises:
        CheckpointError: another feed-forward layer than InternViT's, or other tensors than of a DINOv2.
    """
    from transformers import Dinov2Config

    stored = read_json(directory / "config.json")
    config = Dinov2Config(**{name: value for name, value in stored.items() if name in Dinov2Config().to_dict()})
    if config.use_swiglu_ffn:
        raise CheckpointError(f"vision tower: {directory} has SwiGLU layers, unlike InternViT; take a smaller DINOv2")
    check_tile_size(size, config.patch_size, directory)
    held = {name.removeprefix("dinov2."): tensor for name, tensor in open_weights(directory).items()}
    held.pop("embeddings.mask_token", None)  # of its training; the final norm and a classifier stay behind, too
    tensors = KEYS.to_ours({name: held[name] for name in held if name.startswith(("embeddings.", "encoder."))})
    if _POSITIONS in tensors:
        tensors[_POSITIONS] = MemoryTensor(_resized(tensors[_POSITIONS].read().float(), size // config.patch_size))
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


def _resized(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings ``[1, 1 + P, D]`` of ``side`` x ``side`` patches, as transformers makes them."""
    own = int((positions.shape[1] - 1) ** 0.5)
    if own == side:
        return positions
    grid = positions[:, 1:].unflatten(1, (own, own)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
