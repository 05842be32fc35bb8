"""The projectors of a new base: from a file, or freshly drawn."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ...hub.constants import projector_input_width
from ...hub.modeling_flash import TileGate, TilePooling, make_mlp2
from ...weights import model_view
from ...weights.checkpoint import open_checkpoint
from ...weights.lazy import LazyTensor, MemoryTensor
from ...weights.loader import config_from_fields
from ...weights.reading import CheckpointError


def projector_tensors(config: dict, source: str | Path | None, seed: int) -> dict[str, LazyTensor]:
    """``mlp1.*`` of a new base.

    Args:
        config: official fields.
        source: model directory, or file whose names may lack ``mlp1.``; None for a fresh one.
        seed: of a fresh one: LayerNorm at ones and zeros, linear layers uniform in 1/sqrt(fan_in).

    Raises:
        CheckpointError: no such source, or tensors of other names or shapes.
    """
    from ...hub.modeling_internvl_chat import make_projector  # takes in transformers

    with torch.device("meta"):
        own = make_projector(config_from_fields(config, "the base")).state_dict()
    shapes = {f"mlp1.{name}": tuple(tensor.shape) for name, tensor in own.items()}
    if source is None:
        return _fresh_projector(shapes, seed)
    is_model = Path(source, "config.json").is_file()
    tensors = model_view.open_model(source).tensors if is_model else open_checkpoint(source).tensors
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    held = {name: tensor for name, tensor in own.items() if name.startswith("mlp1.")}
    held = held or {f"mlp1.{name}": tensor for name, tensor in own.items()}
    for name in sorted(held.keys() | shapes.keys()):
        if (found := held[name].shape if name in held else None) != (wanted := shapes.get(name)):
            raise CheckpointError(f"projector {source} doesn't fit these parts: {name} should be {wanted}, is {found}")
    return {name: held[name] for name in shapes}


def flash_tensors(config: dict, seed: int) -> dict[str, LazyTensor]:
    """``mlp2`` and the router of a Flash model, freshly drawn by PyTorch's defaults."""
    width, llm = config["vision_config"]["hidden_size"], config["llm_config"]["hidden_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "mlp2": make_mlp2(projector_input_width(width, config["downsample_ratio"] ** 2), llm),
            "pooling_before_gating": TilePooling(width),
            "gating": TileGate(width),
        }
    return {
        f"{part}.{name}": MemoryTensor(tensor)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def _fresh_projector(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, LazyTensor]:
    generator, fresh = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        layer, kind = name.rsplit(".", 1)
        if len(shapes[f"{layer}.weight"]) == 1:  # LayerNorm
            fresh[name] = MemoryTensor(torch.full(shape, float(kind == "weight")))
        else:
            bound = 1 / math.sqrt(shapes[f"{layer}.weight"][1])
            fresh[name] = MemoryTensor(torch.empty(shape).uniform_(-bound, bound, generator=generator))
    return fresh
