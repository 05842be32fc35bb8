"""The projectors of a new base: from a file, or freshly drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ...hub.constants import PROJECTOR_TYPES, projector_input_width
from ...hub.modeling_flash import FEWER, TileGate, TilePooling, make_mlp2
from ...weights import model_view
from ...weights.checkpoint import open_checkpoint
from ...weights.lazy import LazyTensor, MemoryTensor
from ...weights.reading import CheckpointError


def projector_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ``mlp1``: LayerNorm (of ``pixel_shuffle_mlp`` alone), Linear, (GELU), Linear."""
    kind = config.get("projector_type", PROJECTOR_TYPES[0])
    wide = projector_input_width(config["vision_config"]["hidden_size"], config["downsample_ratio"], kind)
    llm = config["llm_config"]["hidden_size"]
    plain = kind != "pixel_shuffle_mlp"
    norm = {} if plain else {"mlp1.0.weight": (wide,), "mlp1.0.bias": (wide,)}
    for layer, width in zip((0, 2) if plain else (1, 3), (wide, llm), strict=True):
        norm |= {f"mlp1.{layer}.weight": (llm, width), f"mlp1.{layer}.bias": (llm,)}
    return norm


def projector_tensors(config: dict, source: str | Path | None, seed: int) -> dict[str, LazyTensor]:
    """``mlp1.*`` from a model directory or a file (names may lack ``mlp1.``), or freshly drawn for None."""
    shapes = projector_shapes(config)
    if source is None:
        return _fresh_projector(shapes, seed)
    is_model = Path(source, "config.json").is_file()
    tensors = model_view.open_model(source).tensors if is_model else open_checkpoint(source).tensors
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    held = {name: tensor for name, tensor in own.items() if name.startswith("mlp1.")}
    held = held or {f"mlp1.{name}": tensor for name, tensor in own.items()}
    found = {name: tensor.shape for name, tensor in held.items()}
    for name in sorted(found.keys() | shapes.keys()):
        if (own := found.get(name)) != (wanted := shapes.get(name)):
            raise CheckpointError(f"projector {source} doesn't fit these parts: {name} should be {wanted}, is {own}")
    return {name: held[name] for name in shapes}


def flash_tensors(config: dict, projector: Mapping[str, LazyTensor], seed: int) -> dict[str, LazyTensor]:
    """``mlp2`` of a Flash model, made of its projector (``mlp1.*``), and its router, drawn by PyTorch's defaults."""
    width, llm = config["vision_config"]["hidden_size"], config["llm_config"]["hidden_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "mlp2": make_mlp2(projector_input_width(width, config["downsample_ratio"] ** 2), llm),
            "pooling_before_gating": TilePooling(width),
            "gating": TileGate(width),
        }
    with torch.no_grad():
        pool_projector(parts["mlp2"], {name: tensor.read().float() for name, tensor in projector.items()})
    return {
        f"{part}.{name}": MemoryTensor(tensor)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def pool_projector(mlp2: nn.Sequential, projector: Mapping[str, torch.Tensor]) -> None:
    """Makes ``mlp2`` what ``mlp1`` is on the mean of the four normalized tokens that a token of it replaces.

    The middle layer has no part in ``mlp1``: it makes x and -x, of which GELU(x) - GELU(-x) = x.
    """
    llm = len(projector["mlp1.3.bias"])
    norm, first, _, _, second, _, _, last = mlp2

    def over_cell(each: torch.Tensor) -> torch.Tensor:
        """[..., 2 x 2 x D] of ``mlp1`` as [..., 4 x 4 x D]: pixel shuffle has a cell's rows, columns and channels."""
        square = each.unflatten(-1, (2, 2, -1))
        return square.repeat(*[1] * (each.ndim - 1), 2, 2, 1).flatten(-3)

    norm.weight.copy_(over_cell(projector["mlp1.0.weight"]))
    norm.bias.copy_(over_cell(projector["mlp1.0.bias"]))
    first.weight[:llm].copy_(over_cell(projector["mlp1.1.weight"]) / FEWER)
    first.bias[:llm].copy_(projector["mlp1.1.bias"])
    second.weight[:, llm:] = 0.0  # of the units of the first layer that are left drawn
    for sign, rows in ((1, slice(llm)), (-1, slice(llm, None))):
        second.weight[rows, :llm].copy_(sign * projector["mlp1.3.weight"])
        second.bias[rows].copy_(sign * projector["mlp1.3.bias"])
        last.weight[:, rows].copy_(sign * torch.eye(llm))
    last.bias.zero_()


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
